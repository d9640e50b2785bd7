# GC ViT-S on ImageNet-1k.
_base_ = './_base_/gcvit-tiny_in1k_crop-0.875.py'

model = dict(backbone=dict(arch='small'))
