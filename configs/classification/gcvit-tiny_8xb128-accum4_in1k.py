# The same global batch size of 4096 on 8 GPUs, by accumulating the gradients of four batches.
_base_ = './gcvit-tiny_32xb128_in1k.py'

optim_wrapper = dict(accumulative_counts=4)
custom_hooks = _base_.custom_hooks
custom_hooks[0].interval = 4  # update the EMA once per optimizer step, as with 32 GPUs
# A multiple of 4, because accumulated gradients are not saved in checkpoints.
default_hooks = dict(checkpoint=dict(interval=2000))
