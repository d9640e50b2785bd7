# FSDP (FSDPStrategy of MMEngine): parameters, gradients and optimizer states are sharded across GPUs. An example for
# large archs at high resolution; not yet run. No EMA, as it would keep a full copy of the weights on every GPU.
_base_ = './gcvit-tiny_32xb128_in1k.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        use_orig_params=True,
        auto_wrap_policy=dict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=1_000_000),
    ),
)
optim_wrapper = dict(
    type='mmgcvit.FSDPAmpOptimWrapper',  # clips by the gradient norm over all shards
    # By parameter name and layer type, because FSDP flattens all parameters to 1-D.
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(gamma=dict(decay_mult=0.0))
    ),
)
custom_hooks = [dict(type='mmgcvit.ClassificationHook')]
val_cfg = dict(type='ValLoop')
