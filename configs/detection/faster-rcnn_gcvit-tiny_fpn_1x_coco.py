# Faster R-CNN with GC ViT-T on COCO, boxes only, 12 epochs, 8 GPUs x 2 images per GPU.
_base_ = [
    './_base_/faster-rcnn_gcvit-tiny_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
