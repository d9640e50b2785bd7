# Cascade Mask R-CNN with GC ViT-T on COCO, 36 epochs, multi-scale training, 4conv1fc box heads. This is the recipe of
# the paper, except that the input image is padded instead of each window.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    './_base_/coco_instance_ms-crop.py',
    './_base_/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

head_norm = dict(type='SyncBN', requires_grad=True)
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
    roi_head=dict(
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds),
                reg_class_agnostic=True,
                reg_decoded_bbox=True,
                norm_cfg=head_norm,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ]
    ),
)
