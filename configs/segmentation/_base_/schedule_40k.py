# 40k iterations.
_base_ = './schedule_160k.py'
train_cfg = dict(max_iters=40000, val_interval=4000)
param_scheduler = _base_.param_scheduler
param_scheduler[-1].end = 40000
default_hooks = dict(checkpoint=dict(interval=4000))
