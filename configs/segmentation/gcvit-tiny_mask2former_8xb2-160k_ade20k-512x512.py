# Mask2Former with GC ViT-T on ADE20K.
_base_ = [
    './_base_/mask2former_gcvit-tiny.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_160k.py',
    './_base_/default_runtime.py',
]

# Layer-wise learning rate decay, as for DINO: the stem is trained at 0.14 of the rate of the heads. No weight decay for
# norms, biases, relative position bias tables and queries.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='GCViTLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.94, embedding_decay_mult=0.0),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000)]
