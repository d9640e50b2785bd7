# mmpretrain: classifier with GC ViT-T on ImageNet-1k, 300 epochs, 16 GPUs x 64 images per GPU, with Swin's recipe.
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='GCViT', arch='tiny', drop_path_rate=0.2, out_indices=(3,)),
    head=dict(in_channels=512),
)
