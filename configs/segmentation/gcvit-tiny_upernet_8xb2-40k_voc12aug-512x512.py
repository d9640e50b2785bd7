# UPerNet with GC ViT-T on augmented Pascal VOC 2012.
_base_ = [
    './_base_/upernet_gcvit-tiny.py',
    './_base_/pascal_voc12aug_512x512.py',
    './_base_/schedule_40k.py',
    './_base_/default_runtime.py',
]

model = dict(decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))
