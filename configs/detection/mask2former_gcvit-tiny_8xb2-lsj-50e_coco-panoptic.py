# Mask2Former with GC ViT-T on COCO panoptic, 50 epochs, large-scale jittering, 8 GPUs x 2 images per GPU.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
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
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)

# Layer-wise learning rate decay, as for DINO. No weight decay for norms, biases, bias tables and queries.
optim_wrapper = dict(
    constructor='GCViTLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.94, embedding_decay_mult=0.0),
)
annotations = 'data/coco/annotations/'
val_evaluator = [
    dict(
        type='mmgcvit.PanopticMetric',
        ann_file=annotations + 'panoptic_val2017.json',
        seg_prefix=annotations + 'panoptic_val2017/',
    ),
    dict(type='CocoMetric', ann_file=annotations + 'instances_val2017.json', metric=['bbox', 'segm']),
]
test_evaluator = val_evaluator
del annotations
