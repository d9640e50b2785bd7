# Mask R-CNN on your own pictures. Copy this file beside itself, change two things, where the data is and the class
# names, and give the copy to tools/train.py.
#
#   data_root/images/      the pictures
#   data_root/train.json   COCO instance annotations (boxes and polygons or run lengths)
#   data_root/val.json     the same, of pictures that are not in train.json
#
# (With a copy elsewhere: _base_ = 'mmgcvit::detection/_base_/mask-rcnn_gcvit-nano_fpn.py')
_base_ = './_base_/mask-rcnn_gcvit-nano_fpn.py'

data_root = 'data/my_data/'
classes = ('cat', 'dog')  # the categories of train.json, in its order; one class: ('cat', )

# Nothing below needs a change. The base is small enough to learn from scratch on a CPU, in minutes.
model = dict(roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))))

scale = (480, 320)  # pictures are brought inside this: long and short side, in pixels
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root.rstrip('/') + '/val.json')
test_evaluator = val_evaluator

# Some hundred pictures or more deserve more iterations.
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min_ratio=0.01),
]
