# The authors' form for dense prediction: windows of 24, padded in each block.
_base_ = "./gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py"

model = dict(backbone=dict(window_size=(24, 24, 24, 24), pad="window", global_query_reductions=(3, 2, 1, 0)))
