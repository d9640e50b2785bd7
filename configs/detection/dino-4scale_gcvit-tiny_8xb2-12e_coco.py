# DINO, four scales, with GC ViT-T on COCO, 12 epochs, 8 GPUs with 2 pictures each.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
custom_imports = dict(imports=["mmgcvit"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="GCViT",
        arch="tiny",
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="gcvit://tiny_in1k"),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)

# The learning rate falls from the last block to the stem, 32 layers below the heads, to 0.94^32 = 0.14 of theirs: about
# where one lower rate for the whole backbone (0.1) is usual.
optim_wrapper = dict(
    constructor="GCViTLayerDecayOptimWrapperConstructor", paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.94)
)
