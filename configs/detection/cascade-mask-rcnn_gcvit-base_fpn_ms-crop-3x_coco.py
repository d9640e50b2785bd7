# Cascade Mask R-CNN with GC ViT-B on COCO, 36 epochs, multi-scale training.
_base_ = './cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint='gcvit://base_in1k')),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
