# GC ViT-T on ImageNet-1k at 224 x 224 from scratch, with the recipe of the authors. The learning rate is for a global
# batch size of 4096 (32 GPUs x 128 images). With fewer GPUs, use --auto-scale-lr or the `accum4` config.
default_scope = 'mmengine'
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

model = dict(
    type='GCViTClassifier',
    backbone=dict(type='GCViT', arch='tiny'),  # uses the drop path rate of the arch
    num_classes=1000,
    data_preprocessor=dict(
        type='mmgcvit.ClassificationPreprocessor',
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        erasing=dict(probability=0.25, mode='pixel'),
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.1),
    ),
)

data_root = 'data/imagenet/'
train_pipeline = [
    dict(type='mmgcvit.LoadPillowImage'),
    dict(
        type='mmgcvit.TimmTransform',
        is_training=True,
        input_size=224,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        auto_augment='rand-m9-mstd0.5-inc1',
        interpolation='random',
    ),
]
test_pipeline = [
    dict(type='mmgcvit.LoadPillowImage'),
    dict(
        type='mmgcvit.TimmTransform',
        is_training=False,
        input_size=224,
        interpolation='bicubic',
        crop_pct=1.0,
        crop_mode='center',
    ),
]
# reader: 'folder' (split/CLASS/NAME.JPEG), 'tar', 'shards' (WebDataset; set classes=1000) or 'hfds' (Hugging Face)
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,  # mixup pairs the images of a batch
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmgcvit.ClassificationDataset',
        data_root=data_root,
        split='train',
        reader='folder',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmgcvit.ClassificationDataset',
        data_root=data_root,
        split='val',
        reader='folder',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmgcvit.TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator

# No weight decay for 1-D parameters (norms, layer scale) and biases. Relative position bias tables are decayed.
optim_wrapper = dict(
    type='AmpOptimWrapper',  # falls back to float32 without a GPU; use --amp bf16 for bfloat16
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
# 310 epochs of cosine annealing, including 20 of warmup, then 10 epochs of cooldown at the minimum rate
param_scheduler = dict(
    type='mmgcvit.WarmupCosineLR',
    warmup=20,
    T_max=310,
    warmup_start=1e-6,
    eta_min=5e-6,
    by_epoch=True,
    begin=0,
    end=320,
    convert_to_iter_based=True,
)
train_cfg = dict(type='mmgcvit.ResumableTrainLoop', max_epochs=320, val_interval=1)
val_cfg = dict(type='mmgcvit.EMAValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=4096)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=3, save_best='accuracy/top1', rule='greater'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=2e-4),  # 1 - 0.9998
    dict(type='mmgcvit.ClassificationHook'),
]
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=42, diff_rank_seed=True)
log_level = 'INFO'
load_from = None
resume = False
