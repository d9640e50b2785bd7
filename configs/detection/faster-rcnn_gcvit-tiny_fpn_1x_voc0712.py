# Faster R-CNN with GC ViT-T on Pascal VOC 2007 + 2012, 8 GPUs x 2 images per GPU. mmdet repeats the dataset 3 times, so
# that 4 epochs amount to 12 passes over the data.
_base_ = [
    './_base_/faster-rcnn_gcvit-tiny_fpn.py',
    'mmdet::_base_/datasets/voc0712.py',
    './_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
train_cfg = dict(max_epochs=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=4, by_epoch=True, milestones=[3], gamma=0.1),
]
