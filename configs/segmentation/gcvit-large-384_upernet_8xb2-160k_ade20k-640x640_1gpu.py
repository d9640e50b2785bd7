# The same on one GPU or a CPU: BN in place of SyncBN, 2 crops, blocks recomputed, the learning rate scaled to them.
_base_ = "./gcvit-large-384_upernet_8xb2-160k_ade20k-640x640.py"

norm_cfg = dict(type="BN")
model = dict(backbone=dict(with_cp=True), decode_head=dict(norm_cfg=norm_cfg), auxiliary_head=dict(norm_cfg=norm_cfg))
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=True)
