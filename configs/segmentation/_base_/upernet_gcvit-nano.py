# A narrow UPerNet with GC ViT that trains from scratch on a small dataset within minutes, even on two CPU cores. The
# heads are reduced to match the backbone: at full size, the 3 x 3 convolutions at stride 4 would dominate the cost.
_base_ = '../gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py'

width = 64
norm_cfg = dict(_delete_=True, type='GN', num_groups=8)  # GN suits small batches
model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=3),
        window_size=8,
        pad='window',
    ),  # pad per window: padding small images to multiples of 256 is expensive
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=width, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=width, norm_cfg=norm_cfg),
)

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0, norm_type=2))
max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, eta_min_ratio=0.01),  # to the end of the run
]
train_dataloader = dict(batch_size=4, num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=4)
default_hooks = dict(checkpoint=dict(interval=max_iters // 2), logger=dict(interval=25))
del max_iters
log_processor = dict(window_size=25)
randomness = dict(seed=0)
