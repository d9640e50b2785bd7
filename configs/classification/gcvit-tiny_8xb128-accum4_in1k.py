# The same 4096 pictures a step with 8 GPUs: gradients of four batches are added up.
_base_ = "./gcvit-tiny_32xb128_in1k.py"

optim_wrapper = dict(accumulative_counts=4)
custom_hooks = _base_.custom_hooks
custom_hooks[0].interval = 4  # the average moves once a step, as with 32 GPUs
# Checkpoints at steps' ends: collected gradients are not saved.
default_hooks = dict(checkpoint=dict(interval=2000))
