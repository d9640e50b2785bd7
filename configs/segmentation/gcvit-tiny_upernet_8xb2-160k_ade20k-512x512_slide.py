# Sliding-window inference at the crop size; the other configs process the whole image.
_base_ = './gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
