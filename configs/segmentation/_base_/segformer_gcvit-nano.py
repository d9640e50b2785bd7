# SegFormer's head, narrow, with the same backbone, data and schedule. Its 1 x 1 convolutions see nothing around a
# place: that takes a backbone of more training than some minutes, so that the maps go through an FPN first.
_base_ = "./fpn_gcvit-nano.py"

model = dict(
    decode_head=dict(
        _delete_=True,
        type="SegformerHead",
        in_channels=[_base_.width] * 4,
        in_index=[0, 1, 2, 3],
        channels=_base_.width,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    )
)
