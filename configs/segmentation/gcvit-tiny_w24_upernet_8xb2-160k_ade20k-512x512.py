# 24 x 24 windows, padded in each block, as the authors use for dense prediction.
_base_ = './gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(window_size=(24, 24, 24, 24), pad='window', global_query_reductions=(3, 2, 1, 0)))
