# The recipe, with bf16, other readers and the like: _base_/gcvit-tiny_in1k.py
_base_ = './_base_/gcvit-tiny_in1k.py'
