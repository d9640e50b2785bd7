# SegFormer's head over GC ViT-T on ADE20K; the head learns at ten times the backbone's rate, as SegFormer's.
_base_ = [
    "./_base_/segformer_gcvit-tiny.py",
    "./_base_/ade20k_512x512.py",
    "./_base_/schedule_160k.py",
    "./_base_/default_runtime.py",
]

# A custom key goes before the rule for norms, so the head's norms have keys of their own.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "decode_head": dict(lr_mult=10.0),
            **{
                f"decode_head.{conv}.bn": dict(lr_mult=10.0, decay_mult=0.0)
                for conv in ("convs.0", "convs.1", "convs.2", "convs.3", "fusion_conv")
            },
        }
    )
)
