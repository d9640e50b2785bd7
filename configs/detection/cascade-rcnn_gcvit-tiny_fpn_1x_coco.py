# Cascade R-CNN with GC ViT-T on COCO, boxes only, 12 epochs, 8 GPUs x 2 images per GPU.
_base_ = [
    'mmdet::_base_/models/cascade-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
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
