# Template for training any detector of this folder on your own dataset. Copy this file within this folder, set
# `data_root` and `classes`, and pass the copy to mmgcvit check-data and mmgcvit train.
#
#   data_root/images/      images
#   data_root/train.json   COCO annotations: boxes, and polygons or RLE for masks
#   data_root/val.json     annotations of the validation images, which must not appear in train.json
#
# `_base_` selects the model. These models train from scratch on a few dozen images, on a CPU, within minutes:
#   ./_base_/mask-rcnn_gcvit-nano_fpn.py          boxes and masks
#   ./_base_/cascade-mask-rcnn_gcvit-nano_fpn.py  boxes and masks
#   ./_base_/faster-rcnn_gcvit-nano_fpn.py        boxes only; the annotations need no polygons
#   ./_base_/retinanet_gcvit-nano_fpn.py          boxes only
# These fine-tune ImageNet weights on a GPU; set scale = (1333, 800) and train with --auto-scale-lr:
#   ./mask-rcnn_gcvit-tiny_fpn_1x_coco.py, ./faster-rcnn_gcvit-tiny_fpn_1x_coco.py, or any other COCO config
# Their first 1000 iterations are warmup: with a few hundred images, also set param_scheduler and train_cfg.max_epochs.
# If the copy is in another folder, use _base_ = 'mmgcvit::detection/_base_/mask-rcnn_gcvit-nano_fpn.py'.
_base_ = './_base_/mask-rcnn_gcvit-nano_fpn.py'

data_root = 'data/my_data/'
classes = ('cat', 'dog')  # categories in the order of train.json; a single class: ('cat', )

scale = (480, 320)  # images are resized to fit within (long side, short side), in pixels
max_iters = 600  # for the nano models; increase it for several hundred images (the others count epochs)
validations = 3  # number of validations in a run of the nano models; early stopping needs more of them
keep_best = True  # also keep the best checkpoint, best_*.pth
early_stopping = None  # stop after this many validations in a row without a better result, e.g. 5
ema = None  # use a moving average of the weights; the weight of an iteration, e.g. 0.01 for the nano models

# No changes are needed below. All heads get the right number of classes.
model = _base_.model
parts = [model]
for part in parts:
    parts += [value for value in (part if isinstance(part, list) else part.values()) if isinstance(value, (dict, list))]
    if 'num_classes' in part:
        part.num_classes = len(classes)
del parts, part

with_mask = bool(model.get('roi_head', {}).get('mask_head'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
    dict(type='RandomResize', scale=scale, ratio_range=(0.7, 1.2), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root.rstrip('/') + '/val.json', classwise=True)  # also the AP of each class
test_evaluator = val_evaluator

if 'max_iters' in _base_.train_cfg:
    train_cfg = dict(max_iters=max_iters, val_interval=max(max_iters // validations, 1))
del max_iters
if keep_best:
    default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP', rule='greater'))
custom_hooks = []
if early_stopping is not None:
    custom_hooks.append(
        dict(
            type='EarlyStoppingHook', monitor='coco/bbox_mAP', rule='greater', min_delta=0.001, patience=early_stopping
        )
    )
if ema is not None:
    custom_hooks.append(dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=ema))
