# The narrow Mask R-CNN without the mask branch, for datasets with boxes only.
_base_ = './mask-rcnn_gcvit-nano_fpn.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
