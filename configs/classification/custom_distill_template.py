# Template for training a classifier with a teacher: a larger classifier of the same classes, whose probabilities it
# learns besides its labels. Train the teacher first; copy this file beside the config of your classifier, a copy of
# custom_template.py, and set `_base_` and `teacher`. docs/distillation.md has the commands.
_base_ = './custom_template.py'

# A model of timm, and a checkpoint of it; or a GC ViT that was trained by this project: name='gcvit_tiny_any'.
teacher = dict(name='resnet50', checkpoint='teacher.pth')
temperature = 2.0  # above 1, the probabilities of unlikely classes count more
label_weight = 1.0  # 0.0 if the images have no labels: the teacher's probabilities are enough

# No changes are needed below.
model = dict(
    type='mmgcvit.DistilledClassifier',
    teacher=teacher,
    logits=dict(temperature=temperature),
    label_weight=label_weight,
)
