# ADE20K with larger images and 640 x 640 crops.
_base_ = './ade20k_512x512.py'

scale = (2560, 640)
crop_size = (640, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(scale[0] * ratio), int(scale[1] * ratio)), keep_ratio=True)
    for ratio in _base_.ratios
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
