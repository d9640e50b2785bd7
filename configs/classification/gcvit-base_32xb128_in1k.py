# GC ViT-B on ImageNet-1k.
_base_ = './_base_/gcvit-tiny_in1k.py'

model = dict(backbone=dict(arch='base'))
