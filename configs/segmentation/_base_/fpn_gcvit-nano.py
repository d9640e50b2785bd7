# A narrow Semantic FPN with the same backbone, dataset and schedule.
_base_ = './upernet_gcvit-nano.py'

width = _base_.width
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    neck=dict(
        type='FPN', in_channels=_base_.model.decode_head.in_channels, out_channels=width, num_outs=4, norm_cfg=norm_cfg
    ),
    decode_head=dict(
        _delete_=True,
        type='FPNHead',
        in_channels=[width] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=width,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(in_channels=width),
)
