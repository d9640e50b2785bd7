# The demo of classification: single digits of the digit scenes (tools/make_digit_scenes.py), from scratch.
_base_ = './_base_/gcvit-nano.py'

model = dict(num_classes=10)
data = dict(data_root='data/digit_scenes/classification/')
train_dataloader, val_dataloader = _base_.train_dataloader, _base_.val_dataloader
train_dataloader.dataset.update(data)
train_dataloader.dataset.pipeline[1].hflip = 0.0  # a mirrored digit is another one or none
val_dataloader.dataset.update(data)
test_dataloader = val_dataloader
del data
