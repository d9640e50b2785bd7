"""Measure backbones and window attention on a GPU: python tools/benchmark_gpu.py --out gpu.json --minutes 9"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("benchmark-gpu"))
