"""Training, testing and inference from a config file: what the commands in ``tools/`` call."""

from mmgcvit.apis.config import (
    UsageError,
    add_config_arguments,
    add_runner_arguments,
    config_from_arguments,
    load_config,
)
from mmgcvit.apis.inference import predict
from mmgcvit.apis.runs import test, train

__all__ = ["UsageError", "add_config_arguments", "add_runner_arguments", "config_from_arguments", "load_config",
           "predict", "test", "train"]  # fmt: skip
