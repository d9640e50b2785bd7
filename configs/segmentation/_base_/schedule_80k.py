# 80k iterations.
_base_ = './schedule_160k.py'
train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].end = 80000
default_hooks = dict(checkpoint=dict(interval=8000))
