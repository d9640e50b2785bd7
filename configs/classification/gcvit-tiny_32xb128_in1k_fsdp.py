# The recipe with parameters, gradients and optimizer sharded among GPUs (MMEngine's FSDPStrategy), as a pattern for
# the wide archs at large sizes. It needs GPUs, and has not been run yet. Averaged weights are left out:
# they would be a whole copy on each GPU.
_base_ = "./gcvit-tiny_32xb128_in1k.py"

runner_type = "FlexibleRunner"
strategy = dict(
    type="FSDPStrategy",
    state_dict_cfg="full",
    model_wrapper=dict(
        use_orig_params=True,
        auto_wrap_policy=dict(type="torch.distributed.fsdp.wrap.size_based_auto_wrap_policy", min_num_params=1_000_000),
    ),
)
optim_wrapper = dict(
    type="mmgcvit.FSDPAmpOptimWrapper",  # clips by the norm of all shards
    # By name and kind: sharded parameters are all vectors.
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(gamma=dict(decay_mult=0.0))
    ),
)
custom_hooks = [dict(type="mmgcvit.ClassificationHook")]
val_cfg = dict(type="ValLoop")
