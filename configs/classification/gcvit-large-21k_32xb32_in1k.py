# Fine-tuning on ImageNet-1k at 224 x 224 from ImageNet-21k weights. Put a checkpoint of gcvit-large_32xb128_in21k.py at
# the path in init_cfg; its classification head is skipped. The authors only state a learning rate (0.001 at 384), but
# neither batch size nor epochs, so this follows the recipe of Swin Transformer.
_base_ = './gcvit-large_32xb128_in1k.py'

model = dict(
    backbone=dict(drop_path_rate=0.1),
    label_smoothing=0.1,
    data_preprocessor=dict(mixup=None),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/gcvit-large_32xb128_in21k/pretrained.pth'),
)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
param_scheduler = dict(warmup=5, T_max=30, end=30, warmup_start=4e-8, eta_min=4e-7)
train_cfg = dict(max_epochs=30)
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=1024)
