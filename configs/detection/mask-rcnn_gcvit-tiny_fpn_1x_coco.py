# Mask R-CNN with GC ViT-T on COCO, 12 epochs, 8 GPUs x 2 images per GPU.
_base_ = [
    './_base_/mask-rcnn_gcvit-tiny_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
