# Template for images with any number of channels, or with more than 8 bits. Copy custom_template.py and this file
# within this folder, set `_base_` to your copy of the former, and set the following values.
_base_ = './custom_template.py'

# Statistics of each channel in the order as loaded: blue, green, red, others from PNG and TIFF files, and the order of
# the file with imdecode_backend='tifffile'. One value each for images with one channel.
mean = [103.53, 116.28, 123.675, 110.0]
std = [57.375, 57.12, 58.395, 60.0]
# 'unchanged' loads all channels and all bits, 'grayscale' one channel of 8 bits. OpenCV reads up to four channels; for
# more, use TIFF files with imdecode_backend='tifffile' (pip install tifffile).
load = dict(type='LoadImageFromFile', color_type='unchanged', to_float32=True, imdecode_backend='cv2')

# No changes are needed below. The changes of colours are left out: they are for 8-bit RGB images.
model = dict(
    backbone=dict(in_channels=len(mean)),
    data_preprocessor=dict(mean=mean, std=std, bgr_to_rgb=False),
)
colour = ('PhotoMetricDistortion', 'RandomGrayscale')
train_pipeline = [load, *(step for step in _base_.train_pipeline[1:] if step['type'] not in colour)]
test_pipeline = [load, *_base_.test_pipeline[1:]]
tta_pipeline = [load, *_base_.tta_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
del colour, load
