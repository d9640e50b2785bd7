"""Exceptions of mmgcvit.

Each message names the thing, its value and what is allowed. All exceptions derive from :class:`MMGCViTError`; their
second base class is the built-in exception that callers may already catch.
"""

from __future__ import annotations


class MMGCViTError(Exception):
    """Base class of all errors below."""


class UsageError(MMGCViTError, ValueError):
    """A command-line argument, a config or a file given by the user cannot be used. Shown without a traceback."""


class CheckpointError(MMGCViTError, ValueError):
    """A checkpoint cannot be fetched, cannot be read, or belongs to another network. The model is left unchanged."""


class AnnotationError(MMGCViTError, ValueError):
    """The annotations of a detection or segmentation data set cannot be used."""


class ClassificationDataError(MMGCViTError, ValueError):
    """A classification data set cannot be used."""


class CorruptImageError(MMGCViTError, OSError):
    """An image cannot be decoded, or is truncated."""


CorruptPictureError = CorruptImageError  # former name, kept for one release


class PrepareError(MMGCViTError, ValueError):
    """A downloaded data set cannot be linked to where the configs expect it."""


class ExportError(MMGCViTError, ValueError):
    """A model cannot be exported, or the exported file does not agree with the model."""


class InvalidLossError(MMGCViTError, RuntimeError):
    """The training loss is NaN or infinite."""


class RunStopped(MMGCViTError, RuntimeError):
    """A run was stopped by a signal.

    Args:
        message: where the run was stopped, and how to go on.
        number: the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_status(self) -> int:
        """Exit status of a process that a signal has stopped, as shells report it."""
        return 128 + self.number


class BenchmarkError(MMGCViTError):
    """A measurement cannot be taken as requested."""
