"""Training, testing and inference from a config file, as used by the commands in ``tools/``."""

from mmgcvit.apis.checkpoints import newest_checkpoint
from mmgcvit.apis.config import (
    add_config_arguments,
    add_pixels_argument,
    add_runner_arguments,
    config_from_arguments,
    load_config,
)
from mmgcvit.apis.inference import Summary, predict
from mmgcvit.apis.runs import test, train
from mmgcvit.apis.summary import end_of_run
from mmgcvit.apis.tta import use_tta
from mmgcvit.engine.progress import short_output
from mmgcvit.errors import RunStopped, UsageError

__all__ = ["RunStopped", "Summary", "UsageError", "add_config_arguments", "add_pixels_argument", "add_runner_arguments",
           "config_from_arguments", "end_of_run", "load_config", "newest_checkpoint", "predict", "short_output", "test",
           "train", "use_tta"]  # fmt: skip
