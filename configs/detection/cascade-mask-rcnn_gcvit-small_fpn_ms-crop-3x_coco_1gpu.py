# The same on one GPU or a CPU: BN in place of SyncBN, blocks recomputed, and the learning rate scaled from 8 x 2
# pictures to this batch.
_base_ = "./cascade-mask-rcnn_gcvit-small_fpn_ms-crop-3x_coco.py"

_base_.model.backbone.with_cp = True
for head in _base_.model.roi_head.bbox_head:
    head.norm_cfg = dict(type="BN", requires_grad=True)
del head
model = _base_.model
auto_scale_lr = dict(enable=True)
