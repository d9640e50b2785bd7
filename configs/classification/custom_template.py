# A classifier of your own pictures. Copy this file beside itself, change two things, where the data is and the class
# names, and give the copy to tools/train.py.
#
#   data_root/train/CLASS/NAME.jpg     pictures, a folder for each class; data_root/val/ the same, of other pictures
#
# The base says what is trained. This one learns some hundred pictures from scratch, on a CPU, in minutes:
#   ./_base_/gcvit-nano.py
# and these fine-tune published ImageNet weights on a GPU (load = 'gcvit://tiny_in1k', or another of `mmgcvit weights
# list`); take size = 224 with them, and --auto-scale-lr:
#   ./gcvit-tiny_32xb128_in1k.py, or any other ImageNet-1k config here
# (With a copy elsewhere: _base_ = 'mmgcvit::classification/_base_/gcvit-nano.py')
_base_ = "./_base_/gcvit-nano.py"

data_root = "data/my_data/"
classes = ("cat", "dog")  # the folders' names, in the order of the classes

size = 128  # pictures are brought to this size, in pixels, with a multiple of 32 nothing is padded
scale = (0.5, 1.0)  # shares of the picture that training sees at a time
flips = dict(hflip=0.5, vflip=0.0)  # how often pictures are mirrored; of pictures taken from above vflip=0.5 too
batch_size = 16
max_epochs = 60
load = None

# Nothing below needs a change.
model = dict(num_classes=len(classes))
if load is not None:
    model["init_cfg"] = dict(type="Pretrained", checkpoint=load)
train_dataloader, val_dataloader = _base_.train_dataloader, _base_.val_dataloader
for loader in (train_dataloader, val_dataloader):
    loader.batch_size = batch_size
    loader.dataset.update(data_root=data_root, classes=classes)
    loader.dataset.pipeline[1].input_size = size
    del loader
train_dataloader.dataset.pipeline[1].update(scale=scale, **flips)
test_dataloader = val_dataloader
param_scheduler = dict(warmup=max(max_epochs // 15, 1), T_max=max_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=max(max_epochs // 3, 1))
custom_hooks = [dict(type="mmgcvit.ClassificationHook")]  # over few steps, averaged weights are the first ones
if _base_.default_hooks.checkpoint.by_epoch:
    default_hooks = dict(checkpoint=dict(interval=max(max_epochs // 3, 1)))
