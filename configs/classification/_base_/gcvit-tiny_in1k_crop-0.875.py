# For the variants that are evaluated on the centre of pictures brought to a short side of 256.
_base_ = "./gcvit-tiny_in1k.py"

val_dataloader = _base_.val_dataloader
val_dataloader.dataset.pipeline[1].crop_pct = 0.875
test_dataloader = val_dataloader
