# UPerNet with GC ViT-T on ADE20K, 80k iterations.
_base_ = [
    './_base_/upernet_gcvit-tiny.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_80k.py',
    './_base_/default_runtime.py',
]
