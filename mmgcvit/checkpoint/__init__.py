"""Weights of every publisher: read safely, renamed into ours, fitted to a model, reported."""

from mmgcvit.checkpoint.errors import CheckpointError
from mmgcvit.checkpoint.fit import LoadReport
from mmgcvit.checkpoint.layouts import convert_state_dict
from mmgcvit.checkpoint.loading import load_pretrained

__all__ = ["CheckpointError", "LoadReport", "convert_state_dict", "load_pretrained"]
