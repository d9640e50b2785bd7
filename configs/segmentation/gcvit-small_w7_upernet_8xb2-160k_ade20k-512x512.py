# Windows of 7, as in pre-training. They do not divide the feature maps of a crop, so that each block pads its input.
_base_ = './gcvit-small_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(window_size=7, pad='window'))
