"""Paths of the package's files."""

from pathlib import Path

#: The configs that are installed with the package (a link to ``configs/`` in a checkout).
SHIPPED_CONFIGS = Path(__file__).parents[1] / ".mim" / "configs"
