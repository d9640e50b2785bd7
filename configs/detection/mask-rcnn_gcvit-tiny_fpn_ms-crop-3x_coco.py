# Mask R-CNN with GC ViT-T on COCO, 36 epochs, several scales: the paper's recipe (with this project's padding).
_base_ = [
    "./_base_/mask-rcnn_gcvit-tiny_fpn.py",
    "./_base_/coco_instance_ms-crop.py",
    "./_base_/schedule_3x.py",
    "mmdet::_base_/default_runtime.py",
]
