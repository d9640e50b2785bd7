# A narrow GC ViT that trains from scratch on a small dataset within minutes, even on two CPU cores. The nano detectors
# and segmentors have the same backbone and can be initialized from its weights.
_base_ = './gcvit-tiny_in1k.py'

size = 64
max_epochs = 24
model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=3),
        window_size=4,
        pad='window',
    ),
    label_smoothing=0.1,
    data_preprocessor=dict(_delete_=True, type='mmgcvit.ClassificationPreprocessor'),
)  # no random erasing, no mixup
train_pipeline = [
    dict(type='mmgcvit.LoadPillowImage'),
    dict(
        type='mmgcvit.TimmTransform',
        is_training=True,
        input_size=size,
        scale=(0.5, 1.0),
        interpolation='bicubic',
        auto_augment='rand-m5-mstd0.5-tweights',
    ),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(input_size=size, crop_mode='squash')
train_dataloader = dict(batch_size=32, num_workers=1, pin_memory=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, num_workers=1, pin_memory=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = dict(warmup=2, T_max=max_epochs, end=max_epochs, eta_min=1e-5)
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs // 3)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=max_epochs // 3), logger=dict(interval=20))
custom_hooks = [dict(type='mmgcvit.ClassificationHook')]
randomness = dict(seed=0, diff_rank_seed=True)
