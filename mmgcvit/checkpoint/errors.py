"""Old names, kept for one release: :mod:`mmgcvit.errors` and :mod:`mmgcvit.utils` have them now."""

from mmgcvit.errors import CheckpointError as CheckpointError
from mmgcvit.utils import summarize as some  # noqa: F401
