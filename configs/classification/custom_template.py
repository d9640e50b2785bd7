# Template for training a classifier on your own dataset. Copy this file within this folder, set `data_root` and
# `classes`, and pass the copy to mmgcvit train.
#
#   data_root/train/CLASS/NAME.jpg     training images, one folder per class
#   data_root/val/CLASS/NAME.jpg       validation images
#
# `_base_` selects the model. This one trains from scratch on a few hundred images, on a CPU, within minutes:
#   ./_base_/gcvit-nano.py
# These fine-tune ImageNet weights on a GPU; set load = 'gcvit://tiny_in1k' (see `mmgcvit weights list`) and size = 224,
# and train with --auto-scale-lr:
#   ./gcvit-tiny_32xb128_in1k.py, or any other ImageNet-1k config
# If the copy is in another folder, use _base_ = 'mmgcvit::classification/_base_/gcvit-nano.py'.
_base_ = './_base_/gcvit-nano.py'

data_root = 'data/my_data/'
classes = ('cat', 'dog')  # folder names, in the order of the class indices

size = 128  # input size in pixels; multiples of 32 avoid padding
scale = (0.5, 1.0)  # area of a random training crop, relative to the image
flips = dict(hflip=0.5, vflip=0.0)  # flip probabilities; use vflip=0.5 for aerial images
batch_size = 16
max_epochs = 60
validations = 3  # number of validations in a run of the nano models; early stopping needs more of them
keep_best = True  # also keep the best checkpoint, best_*.pth
early_stopping = None  # stop after this many validations in a row without a better result, e.g. 5
ema = None  # use a moving average of the weights; the weight of an iteration, e.g. 0.01 (too small: stays at the start)
class_weight = None  # weight of each class in the loss, e.g. [1.0, 4.0] if there are 4 times as many cats as dogs
balance = None  # repeat images of classes that are less frequent than this, e.g. 0.5 for half of the images
load = None

# No changes are needed below.
model = dict(num_classes=len(classes), class_weight=class_weight)
if load is not None:
    model['init_cfg'] = dict(type='Pretrained', checkpoint=load)
train_dataloader, val_dataloader = _base_.train_dataloader, _base_.val_dataloader
for loader in (train_dataloader, val_dataloader):
    loader.batch_size = batch_size
    loader.dataset.update(data_root=data_root, classes=classes)
    loader.dataset.pipeline[1].input_size = size
    del loader
train_dataloader.dataset.pipeline[1].update(scale=scale, **flips)
if balance is not None:
    train_dataloader.dataset = dict(
        _delete_=True, type='ClassBalancedDataset', oversample_thr=balance, dataset=train_dataloader.dataset
    )
test_dataloader = val_dataloader
val_evaluator = dict(classwise=True)  # also recall and precision of each class, and the confusion matrix
test_evaluator = val_evaluator
warmup = min(max(max_epochs // 15, 1), max_epochs - 1)
param_scheduler = dict(warmup=warmup, T_max=max_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=max(max_epochs // validations, 1))
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1' if keep_best else None))
custom_hooks = [dict(type='mmgcvit.ClassificationHook')]
if early_stopping is not None:
    custom_hooks.append(
        dict(type='EarlyStoppingHook', monitor='accuracy/top1', rule='greater', min_delta=0.1, patience=early_stopping)
    )
if ema is not None:
    custom_hooks.append(dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=ema))
if _base_.default_hooks.checkpoint.by_epoch:  # the nano model, whose learning rate suits small batches
    auto_scale_lr = dict(base_batch_size=batch_size)
    default_hooks['checkpoint']['interval'] = max(max_epochs // 3, 1)
