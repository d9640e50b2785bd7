# Template for pre-training a backbone on images without labels, from the features of a teacher. Copy this file within
# this folder, and set `data_root`. Train a detector, segmentor or classifier from its checkpoint:
# backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=...)). docs/distillation.md has the commands.
#
#   data_root/train/NAME/*.jpg     images, in one or several folders with any names
_base_ = './_base_/gcvit-nano.py'

data_root = 'data/my_images/'
# A model of timm with its pretrained weights, also dict(name='vit_small_patch14_dinov2.lvd142m', img_size=224).
teacher = dict(name='resnet50.a1_in1k')
size = 128  # input size in pixels; multiples of 32 avoid padding
batch_size = 32
max_epochs = 100

# No changes are needed below.
model = dict(type='mmgcvit.DistilledClassifier', teacher=teacher, features=dict(weight=1.0), label_weight=0.0)
train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = batch_size
train_dataloader.dataset.data_root = data_root
train_dataloader.dataset.pipeline[1].input_size = size
warmup = min(max(max_epochs // 15, 1), max_epochs - 1)
param_scheduler = dict(warmup=warmup, T_max=max_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
# There is nothing to evaluate: the model has no head.
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(checkpoint=dict(interval=max(max_epochs // 3, 1), save_best=None))
auto_scale_lr = dict(base_batch_size=batch_size)
