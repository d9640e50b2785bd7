# Detection demo: a narrow Mask R-CNN trained from scratch on digit scenes (mmgcvit make-digit-scenes).
_base_ = './_base_/mask-rcnn_gcvit-nano_fpn.py'

# Choices for fast training from scratch: normalized heads, class-agnostic boxes and masks (so that they learn from all
# ten digits), and half of the sampled RoIs positive. Windows of 5 divide every feature map of a 160 x 160 scene.
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(window_size=5),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            conv_out_channels=64,
            norm_cfg=norm_cfg,
            num_classes=10,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(roi_layer=dict(output_size=7)),
        mask_head=dict(num_classes=10, class_agnostic=True),
    ),
    train_cfg=dict(rcnn=dict(mask_size=14, sampler=dict(num=48, pos_fraction=0.5))),
    # Digits do not overlap, so keep a single prediction per location.
    test_cfg=dict(rcnn=dict(nms=dict(class_agnostic=True))),
)

data_root = 'data/digit_scenes/'
metainfo = dict(classes=tuple('0123456789'))
# Scenes are already 160 x 160, and flipping would change the digits: no augmentation.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val/'),
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root.rstrip('/') + '/annotations/instances_val.json')
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=4)
# Only draw confident predictions.
default_hooks = dict(visualization=dict(score_thr=0.5))
