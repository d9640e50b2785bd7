# A narrow Mask R-CNN with GC ViT that trains from scratch on a small dataset within minutes, even on two CPU cores.
# The heads are reduced to match the backbone: at full size, the mask head on 512 RoIs would dominate the cost.
_base_ = '../mask-rcnn_gcvit-tiny_fpn_1x_coco.py'

width = 64
model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=3),
        window_size=8,
        pad='window',
    ),  # pad per window: padding small images to multiples of 256 is expensive
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0, norm_type=2))

# Iteration-based, because an epoch of a small dataset is too short to be meaningful. The infinite sampler avoids the
# two-second pause that mmengine inserts whenever a finite sampler restarts.
max_iters = 600
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, eta_min_ratio=0.01),  # to the end of the run
]
train_dataloader = dict(batch_size=2, num_workers=1, sampler=dict(type='InfiniteSampler'))
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 2), logger=dict(interval=25))
log_processor = dict(by_epoch=False, window_size=25)
randomness = dict(seed=0)
