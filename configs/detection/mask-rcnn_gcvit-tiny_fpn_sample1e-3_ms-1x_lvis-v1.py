# Mask R-CNN with GC ViT-T on LVIS v1 (1203 classes, rare ones oversampled), 12 epochs, 8 GPUs x 2 images per GPU.
_base_ = [
    './_base_/mask-rcnn_gcvit-tiny_fpn.py',
    'mmdet::_base_/datasets/lvis_v1_instance.py',
    './_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=1203), mask_head=dict(num_classes=1203)),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, max_per_img=300)),
)
