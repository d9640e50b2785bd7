# The recipe stands in its base; the other variants are deltas of it.
_base_ = "./_base_/gcvit-tiny_in1k.py"
