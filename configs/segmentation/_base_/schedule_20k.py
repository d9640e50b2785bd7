# 20k iterations.
_base_ = './schedule_160k.py'
train_cfg = dict(max_iters=20000, val_interval=2000)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].end = 20000
default_hooks = dict(checkpoint=dict(interval=2000))
