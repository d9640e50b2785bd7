# GC ViT-XXT on ImageNet-1k with a RegNetY-16GF as its teacher, that of DeiT (Touvron et al., 2021). Not yet run.
_base_ = './gcvit-xxtiny_32xb128_in1k.py'

model = dict(
    type='mmgcvit.DistilledClassifier',
    teacher=dict(name='regnety_160.deit_in1k'),
    logits=dict(temperature=3.0, weight=0.1),  # those of DeiT's soft distillation
    label_weight=0.9,
)
