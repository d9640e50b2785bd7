# mmdet's Mask R-CNN with a GC ViT-T backbone.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(type='mmgcvit.DetDataPreprocessor'),
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
