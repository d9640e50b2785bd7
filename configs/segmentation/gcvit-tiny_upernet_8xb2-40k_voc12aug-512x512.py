# UPerNet with GC ViT-T on Pascal VOC 2012, augmented.
_base_ = [
    "./_base_/upernet_gcvit-tiny.py",
    "./_base_/pascal_voc12aug_512x512.py",
    "./_base_/schedule_40k.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))
