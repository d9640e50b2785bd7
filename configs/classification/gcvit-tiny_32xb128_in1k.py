# GC ViT-T on ImageNet-1k; the base holds the full recipe.
_base_ = './_base_/gcvit-tiny_in1k.py'
