# UPerNet with GC ViT-T on Cityscapes, 4 GPUs x 2 images per GPU.
_base_ = [
    './_base_/upernet_gcvit-tiny.py',
    './_base_/cityscapes_512x1024.py',
    './_base_/schedule_80k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 1024)), decode_head=dict(num_classes=19), auxiliary_head=dict(num_classes=19)
)
auto_scale_lr = dict(base_batch_size=8)
