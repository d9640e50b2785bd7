# UPerNet with GC ViT-T on ADE20K, 20k iterations.
_base_ = [
    './_base_/upernet_gcvit-tiny.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_20k.py',
    './_base_/default_runtime.py',
]
