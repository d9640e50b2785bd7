# SegFormer's head, narrow, with the same backbone, data and schedule.
_base_ = './upernet_gcvit-nano.py'

norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='SegformerHead',
        in_channels=_base_.model.decode_head.in_channels,
        in_index=[0, 1, 2, 3],
        channels=_base_.width,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
