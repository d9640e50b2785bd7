# The same in less memory: blocks are computed again in the backward pass instead of being kept.
_base_ = "./mask-rcnn_gcvit-tiny_fpn_1x_coco.py"

model = dict(backbone=dict(with_cp=True))
