# Windows of 7, as the weights were trained: they do not divide a crop's maps, and each block pads what it attends to.
_base_ = "./gcvit-small_upernet_8xb2-160k_ade20k-512x512.py"

model = dict(backbone=dict(window_size=7, pad="window"))
