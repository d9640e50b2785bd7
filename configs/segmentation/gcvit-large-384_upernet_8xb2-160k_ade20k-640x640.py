# UPerNet with GC ViT-L (pre-trained on ImageNet-21k at 384 x 384) on ADE20K. Windows of 10 divide the feature maps of a
# 640 x 640 crop.
_base_ = [
    './_base_/upernet_gcvit-tiny.py',
    './_base_/ade20k_640x640.py',
    './_base_/schedule_160k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        arch='large-384', window_size=10, drop_path_rate=0.5, init_cfg=dict(checkpoint='gcvit://large_in21k-384')
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
