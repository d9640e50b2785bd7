# The same on one GPU or a CPU: BN in place of SyncBN, 4 crops, blocks recomputed, the learning rate scaled to them.
_base_ = "./gcvit-tiny_upernet_4xb2-80k_cityscapes-512x1024.py"

norm_cfg = dict(type="BN")
model = dict(backbone=dict(with_cp=True), decode_head=dict(norm_cfg=norm_cfg), auxiliary_head=dict(norm_cfg=norm_cfg))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(enable=True)
