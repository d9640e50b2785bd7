# UPerNet with GC ViT-S on ADE20K.
_base_ = './gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='gcvit://small_in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
