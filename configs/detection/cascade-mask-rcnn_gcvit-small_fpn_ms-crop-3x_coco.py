# Cascade Mask R-CNN with GC ViT-S on COCO, 36 epochs, multi-scale training.
_base_ = './cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='gcvit://small_in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
