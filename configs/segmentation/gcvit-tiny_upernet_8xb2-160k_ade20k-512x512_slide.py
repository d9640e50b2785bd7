# Tested by sliding a window of the crops' size over the picture; by default the whole picture goes in.
_base_ = "./gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py"

model = dict(test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)))
