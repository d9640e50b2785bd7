# The same on one GPU or a CPU (see the variant with windows of 7).
_base_ = "./cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco_1gpu.py"

model = dict(backbone=dict(window_size=(24, 24, 24, 24), pad="window", global_query_reductions=(3, 2, 1, 0)))
