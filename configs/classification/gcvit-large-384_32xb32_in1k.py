# Fine-tuning at 384 x 384 with windows (12, 12, 24, 12) from weights trained at 224; relative position bias tables are
# resized. Evaluation: mmgcvit test THIS_CONFIG gcvit://large_in21k-384
_base_ = './gcvit-large-21k_32xb32_in1k.py'

model = dict(backbone=dict(arch='large-384'), init_cfg=dict(checkpoint='gcvit://large_in21k-224'))
train_dataloader, val_dataloader = _base_.train_dataloader, _base_.val_dataloader
train_dataloader.dataset.pipeline[1].input_size = 384
val_dataloader.dataset.pipeline[1].update(input_size=384, crop_mode='squash')
test_dataloader = val_dataloader
