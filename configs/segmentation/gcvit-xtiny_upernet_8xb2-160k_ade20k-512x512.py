# UPerNet with GC ViT-XT on ADE20K.
_base_ = './gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='xtiny', init_cfg=dict(checkpoint='gcvit://xtiny_in1k')))
