# RetinaNet with GC ViT-T on COCO, boxes only, 12 epochs, 8 GPUs x 2 images per GPU.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
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
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny_in1k'),
    ),
    # RetinaNet starts at stride 8. An unused stride-4 output would leave its norm layer without gradients.
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
