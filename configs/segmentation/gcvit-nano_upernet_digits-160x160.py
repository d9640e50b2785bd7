# UPerNet with a narrow GC ViT, from scratch on the digit scenes' label maps (tools/make_digit_scenes.py). For
# trials: in so few iterations it tells strokes from background, not yet one digit from another.
_base_ = './_base_/upernet_gcvit-nano.py'

# Windows of 5 divide every map of a 160 x 160 scene.
crop_size = (160, 160)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(window_size=5),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11))

data_root = 'data/digit_scenes/'
metainfo = dict(classes=('background', *'0123456789'))
# Scenes are 160 x 160: nothing to resize, and a mirrored digit is another one or none.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=crop_size, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (120, 160, 200)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]),
]
train_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='semantic/train'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'),
        metainfo=metainfo,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
