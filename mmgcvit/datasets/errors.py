"""What is wrong with data, in words for its owner."""


class ClassificationDataError(ValueError):
    """A data set that cannot be used; the message says where, what is wrong and what is expected."""


class CorruptPictureError(OSError):
    """A picture that cannot be decoded, or not to its end."""
