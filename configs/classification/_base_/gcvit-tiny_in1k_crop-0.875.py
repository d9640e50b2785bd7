# For variants that are evaluated with a crop ratio of 0.875: resize the short side to 256, then center crop to 224.
_base_ = './gcvit-tiny_in1k.py'

val_dataloader = _base_.val_dataloader
val_dataloader.dataset.pipeline[1].crop_pct = 0.875
test_dataloader = val_dataloader
