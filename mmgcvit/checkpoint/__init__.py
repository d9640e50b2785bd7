"""Fetching, safe reading, conversion and loading of checkpoints from all publishers."""

from mmgcvit.checkpoint.fit import LoadReport
from mmgcvit.checkpoint.layouts import convert_state_dict
from mmgcvit.checkpoint.loading import accept_bare_network, load_pretrained
from mmgcvit.checkpoint.reader import trust_checkpoints
from mmgcvit.errors import CheckpointError

__all__ = ["CheckpointError", "LoadReport", "accept_bare_network", "convert_state_dict", "load_pretrained",
           "trust_checkpoints"]  # fmt: skip
