# Mask R-CNN with GC ViT-XT on COCO, 12 epochs.
_base_ = './mask-rcnn_gcvit-tiny_fpn_1x_coco.py'

model = dict(backbone=dict(arch='xtiny', init_cfg=dict(checkpoint='gcvit://xtiny_in1k')))
