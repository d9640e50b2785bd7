# 4-scale DINO with GC ViT-L, pre-trained on ImageNet-21k at 384 x 384. Activation checkpointing saves GPU memory.
_base_ = './dino-4scale_gcvit-tiny_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='large-384', drop_path_rate=0.3, with_cp=True, init_cfg=dict(checkpoint='gcvit://large_in21k-384')
    ),
    neck=dict(in_channels=[384, 768, 1536]),
)
