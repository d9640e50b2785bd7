# mmrotate: Oriented R-CNN with GC ViT-T on DOTA, 12 epochs, 1 GPU x 2 images.
_base_ = 'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
