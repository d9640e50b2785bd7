"""Former names, kept for one release; now in :mod:`mmgcvit.errors` and :mod:`mmgcvit.utils`."""

from mmgcvit.errors import CheckpointError as CheckpointError
from mmgcvit.utils import summarize as some  # noqa: F401
