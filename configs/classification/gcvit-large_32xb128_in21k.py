# Pre-training on ImageNet-21k (2011 release, 21841 classes): data/imagenet21k/train/CLASS/NAME.JPEG. It has no
# validation split. The authors' schedule is unpublished; 90 epochs with 5 of warmup follow Swin Transformer.
_base_ = './gcvit-large_32xb128_in1k.py'

model = dict(num_classes=21841)
train_dataloader = dict(dataset=dict(data_root='data/imagenet21k/'))
val_dataloader = val_evaluator = val_cfg = None
test_dataloader = test_evaluator = test_cfg = None
param_scheduler = dict(warmup=5, T_max=90, end=90)
train_cfg = dict(max_epochs=90, val_interval=91)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(checkpoint=dict(save_best=None))
