# Fine-tuning at 512 x 512 with windows (16, 16, 32, 16). Evaluation: mmgcvit test THIS_CONFIG gcvit://large_in21k-512
_base_ = './gcvit-large-384_32xb32_in1k.py'

model = dict(backbone=dict(arch='large-512'))
train_dataloader, val_dataloader = _base_.train_dataloader, _base_.val_dataloader
train_dataloader.dataset.pipeline[1].input_size = 512
val_dataloader.dataset.pipeline[1].input_size = 512
test_dataloader = val_dataloader
