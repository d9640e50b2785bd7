# Classification demo: trained from scratch on the single digits of the digit scenes (mmgcvit make-digit-scenes).
_base_ = './_base_/gcvit-nano.py'

size = 32  # upsampled from 8 x 8
max_epochs = 60
# Each window covers the whole feature map: 8, 4, 2, 1.
model = dict(backbone=dict(window_size=(8, 4, 2, 1)), num_classes=10)
param_scheduler = dict(T_max=max_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs // 4)
default_hooks = dict(checkpoint=dict(interval=max_epochs // 4))
data = dict(data_root='data/digit_scenes/classification/')
train_dataloader, val_dataloader = _base_.train_dataloader, _base_.val_dataloader
train_dataloader.dataset.update(data)
train_dataloader.batch_size = 64
# No flips and only mild crops: they would change the digit.
train_dataloader.dataset.pipeline[1].update(input_size=size, hflip=0.0, scale=(0.8, 1.0))
val_dataloader.dataset.update(data)
val_dataloader.dataset.pipeline[1].input_size = size
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=64)
del data
