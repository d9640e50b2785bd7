# The demo of segmentation: from scratch on the digit scenes' label maps (tools/make_digit_scenes.py).
_base_ = "./_base_/fpn_gcvit-nano.py"

# The coarse maps tell one digit from another, the finest one where its strokes are: the head sees all four side by
# side. Nine of ten pixels are background, and a class weight that is small enough to make digits matter makes strokes
# too thick: so the auxiliary head, on the coarse maps, has such a weight, and the other a larger one.
# Windows of 5 divide every map of a 160 x 160 scene.
crop_size = (160, 160)
head = dict(
    _delete_=True,
    type="FCNHead",
    input_transform="resize_concat",
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
        loss_decode=dict(type="CrossEntropyLoss", class_weight=[0.4] + [1.0] * 10),
        **head,
    ),
    auxiliary_head=dict(
        in_channels=[_base_.width] * 3,
        in_index=[1, 2, 3],
        loss_decode=dict(type="CrossEntropyLoss", class_weight=[0.05] + [1.0] * 10),
        **head,
    ),
)
del head
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
max_iters = 1100
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].update(end=max_iters, T_max=max_iters - 50)
default_hooks = dict(checkpoint=dict(interval=max_iters))
del max_iters

data_root = "data/digit_scenes/"
metainfo = dict(classes=("background", *"0123456789"))
# Scenes are 160 x 160: nothing to resize, and a mirrored digit is another one or none.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=crop_size, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(side, side), keep_ratio=True) for side in (120, 160, 200)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/train", seg_map_path="semantic/train"),
        metainfo=metainfo,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/val", seg_map_path="semantic/val"),
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
