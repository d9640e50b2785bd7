# Mask R-CNN with GC ViT-XXT on COCO, 12 epochs.
_base_ = './mask-rcnn_gcvit-tiny_fpn_1x_coco.py'

model = dict(backbone=dict(arch='xxtiny', init_cfg=dict(checkpoint='gcvit://xxtiny_in1k')))
