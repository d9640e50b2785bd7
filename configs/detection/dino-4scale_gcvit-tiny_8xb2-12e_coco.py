# 4-scale DINO with GC ViT-T on COCO, 12 epochs, 8 GPUs x 2 images per GPU.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
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
    neck=dict(in_channels=[128, 256, 512]),
)

# Layer-wise learning rate decay: the stem, 32 layers below the heads, is trained at 0.94^32 = 0.14 of their rate. This
# is close to the usual multiplier of 0.1 for the whole backbone.
optim_wrapper = dict(
    constructor='GCViTLayerDecayOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.94)
)
auto_scale_lr = dict(enable=False)
