# A narrow SegFormer head with the same backbone, dataset and schedule. Its 1 x 1 convolutions add no spatial context,
# and the backbone cannot learn enough of it within minutes: an FPN in between provides it.
_base_ = './fpn_gcvit-nano.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='SegformerHead',
        in_channels=[_base_.width] * 4,
        in_index=[0, 1, 2, 3],
        channels=_base_.width,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    )
)
