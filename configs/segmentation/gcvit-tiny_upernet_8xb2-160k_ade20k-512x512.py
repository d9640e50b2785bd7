# UPerNet with GC ViT-T on ADE20K, 160k iterations, 8 GPUs x 2 images per GPU.
_base_ = [
    './_base_/upernet_gcvit-tiny.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_160k.py',
    './_base_/default_runtime.py',
]
