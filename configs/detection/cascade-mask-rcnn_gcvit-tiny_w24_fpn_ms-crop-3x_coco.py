# 24 x 24 windows, padded in each block, as in the published models.
_base_ = './cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco.py'

model = dict(backbone=dict(window_size=(24, 24, 24, 24), pad='window', global_query_reductions=(3, 2, 1, 0)))
