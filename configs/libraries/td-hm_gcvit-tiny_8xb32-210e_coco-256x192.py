# mmpose: top-down heatmaps of 17 keypoints with GC ViT-T on COCO, 210 epochs, 8 GPUs x 32 persons per GPU.
_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_swin-t-p4-w7_8xb32-210e_coco-256x192.py'
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        drop_path_rate=0.2,
        out_indices=(3,),
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny_in1k'),
    ),
    head=dict(in_channels=512),
)
