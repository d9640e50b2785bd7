"""General helpers: atomic file writing, hashes, text."""

from mmgcvit.utils.files import atomic_path, file_sha256, write_json
from mmgcvit.utils.text import summarize

__all__ = ["atomic_path", "file_sha256", "summarize", "write_json"]
