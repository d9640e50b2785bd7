# SegFormer's head with GC ViT-T on ADE20K. As in SegFormer, the head is trained at ten times the backbone's rate.
_base_ = [
    './_base_/segformer_gcvit-tiny.py',
    './_base_/ade20k_512x512.py',
    './_base_/schedule_160k.py',
    './_base_/default_runtime.py',
]

# Custom keys take precedence over norm_decay_mult, so the norms of the head need their own keys.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'decode_head': dict(lr_mult=10.0),
            **{
                f'decode_head.{conv}.bn': dict(lr_mult=10.0, decay_mult=0.0)
                for conv in ('convs.0', 'convs.1', 'convs.2', 'convs.3', 'fusion_conv')
            },
        }
    )
)
