# Semantic FPN with GC ViT-T on ADE20K; learning rate and weight decay as in PVT.
_base_ = [
    './_base_/fpn_gcvit-tiny.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_80k.py',
    './_base_/default_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
