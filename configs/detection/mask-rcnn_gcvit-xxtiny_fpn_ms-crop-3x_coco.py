# Mask R-CNN with GC ViT-XXT on COCO, 36 epochs, multi-scale training.
_base_ = './mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='xxtiny', init_cfg=dict(checkpoint='gcvit://xxtiny_in1k')))
