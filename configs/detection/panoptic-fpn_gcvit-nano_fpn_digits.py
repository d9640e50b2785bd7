# Panoptic demo: the narrow Mask R-CNN of the detection demo with a semantic head, on digit scenes.
_base_ = './mask-rcnn_gcvit-nano_fpn_digits.py'

classes = dict(num_things_classes=10, num_stuff_classes=1)
model = dict(
    type='PanopticFPN',
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    semantic_head=dict(
        type='mmgcvit.PanopticFPNHead',
        in_channels=64,
        inner_channels=32,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type='GN', num_groups=8),
        loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
        **classes,
    ),
    panoptic_fusion_head=dict(type='HeuristicFusionHead', **classes),
    test_cfg=dict(rcnn=dict(score_thr=0.5), panoptic=dict(mask_overlap=0.5, stuff_area_limit=1024)),
)
del classes

data_root = 'data/digit_scenes/'
metainfo = dict(classes=(*'0123456789', 'background'), thing_classes=tuple('0123456789'), stuff_classes=('background',))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmgcvit.LoadPanopticAnnotations'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='mmgcvit.LoadPanopticAnnotations'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_train.json',
        data_prefix=dict(seg='panoptic/train/'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_val.json',
        data_prefix=dict(seg='panoptic/val/'),
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='mmgcvit.PanopticMetric',
    ann_file=data_root + 'annotations/panoptic_val.json',
    seg_prefix=data_root + 'panoptic/val/',
)
test_evaluator = val_evaluator
