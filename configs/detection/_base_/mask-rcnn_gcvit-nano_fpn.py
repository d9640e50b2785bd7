# A GC ViT Mask R-CNN that learns a small data set from scratch in minutes, on two CPU cores if need be: a narrow
# backbone, and heads cut to match. (With mmdet's full heads the 512-RoI mask head is the cost, not the backbone.)
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

width = 64
model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=3, drop_path_rate=0.05),
        # pictures are padded to multiples of 32 x 4 = 128 pixels
        window_size=(4, 4, 8, 4)),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.))),
    clip_grad=dict(max_norm=1., norm_type=2))

# Trained on a CPU as well as on a GPU: few pictures, so one worker and frequent reports.
train_dataloader = dict(batch_size=4, num_workers=1, persistent_workers=True)
val_dataloader = dict(batch_size=4, num_workers=1, persistent_workers=True)
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=4)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
