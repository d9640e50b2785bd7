# Faster R-CNN with GC ViT-T on Pascal VOC 2007 and 2012, 8 GPUs with 2 pictures each. mmdet's data set holds each
# picture 3 times: 4 epochs are 12.
_base_ = [
    "./_base_/faster-rcnn_gcvit-tiny_fpn.py",
    "mmdet::_base_/datasets/voc0712.py",
    "./_base_/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
train_cfg = dict(max_epochs=4)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", begin=0, end=4, by_epoch=True, milestones=[3], gamma=0.1),
]
