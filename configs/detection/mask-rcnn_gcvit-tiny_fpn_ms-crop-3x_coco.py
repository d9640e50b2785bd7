# Mask R-CNN with GC ViT-T on COCO, 36 epochs, multi-scale training. This is the recipe of the paper, except that the
# input image is padded instead of each window.
_base_ = [
    './_base_/mask-rcnn_gcvit-tiny_fpn.py',
    './_base_/coco_instance_ms-crop.py',
    './_base_/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]
