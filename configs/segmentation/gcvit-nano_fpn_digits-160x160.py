# Segmentation demo: a narrow model trained from scratch on digit scenes (mmgcvit make-digit-scenes).
_base_ = './_base_/fpn_gcvit-nano.py'

# The head concatenates all four levels: coarse ones identify the digit, the finest one locates its strokes. About 90 %
# of the pixels are background. A background weight small enough to balance this makes the predicted strokes too thick,
# so only the auxiliary head, on the coarse levels, uses one; the main head uses a larger weight.
# Windows of 5 divide every feature map of a 160 x 160 scene.
crop_size = (160, 160)
head = dict(
    _delete_=True,
    type='FCNHead',
    input_transform='resize_concat',
    channels=_base_.width,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0.0,
    num_classes=11,
    norm_cfg=_base_.norm_cfg,
    align_corners=False,
)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(window_size=5),
    decode_head=dict(
        in_channels=[_base_.width] * 4,
        in_index=[0, 1, 2, 3],
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.4] + [1.0] * 10),
        **head,
    ),
    auxiliary_head=dict(
        in_channels=[_base_.width] * 3,
        in_index=[1, 2, 3],
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.05] + [1.0] * 10),
        **head,
    ),
)
del head
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
max_iters = 1100
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
del max_iters

data_root = 'data/digit_scenes/'
metainfo = dict(classes=('background', *'0123456789'))
# Scenes are already 160 x 160, and flipping would change the digits: no augmentation.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
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
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (120, 160, 200)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
data = dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='semantic/train'), pipeline=train_pipeline, **data
    )
)
val_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'), pipeline=test_pipeline, **data)
)
test_dataloader = val_dataloader
del data
