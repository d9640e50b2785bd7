# Any detector of this folder on your own pictures. Copy this file beside itself, change two things, where the data is
# and the class names, and give the copy to tools/check_data.py and tools/train.py.
#
#   data_root/images/      the pictures
#   data_root/train.json   COCO annotations: boxes, and for masks polygons or run lengths
#   data_root/val.json     the same, of pictures that are not in train.json
#
# The base says what is trained. These learn some dozens of pictures from scratch, on a CPU, in minutes:
#   ./_base_/mask-rcnn_gcvit-nano_fpn.py         boxes and masks
#   ./_base_/cascade-mask-rcnn_gcvit-nano_fpn.py
#   ./_base_/faster-rcnn_gcvit-nano_fpn.py       boxes only: annotations need no polygons
#   ./_base_/retinanet_gcvit-nano_fpn.py         boxes only
# and these fine-tune published ImageNet weights on a GPU; take scale = (1333, 800) with them, and --auto-scale-lr:
#   ./mask-rcnn_gcvit-tiny_fpn_1x_coco.py, ./faster-rcnn_gcvit-tiny_fpn_1x_coco.py, or any other COCO config here
# (their first 1000 iterations are warm-up: with some hundred pictures set param_scheduler and train_cfg.max_epochs too)
# (With a copy elsewhere: _base_ = 'mmgcvit::detection/_base_/mask-rcnn_gcvit-nano_fpn.py')
_base_ = "./_base_/mask-rcnn_gcvit-nano_fpn.py"

data_root = "data/my_data/"
classes = ("cat", "dog")  # the categories of train.json, in its order; one class: ('cat', )

scale = (480, 320)  # pictures are brought inside this: long and short side, in pixels
max_iters = 600  # of a nano base; some hundred pictures or more deserve more (the others count epochs)

# Nothing below needs a change. Every head of the base gets as many classes.
model = _base_.model
parts = [model]
for part in parts:
    parts += [value for value in (part if isinstance(part, list) else part.values()) if isinstance(value, (dict, list))]
    if "num_classes" in part:
        part.num_classes = len(classes)
del parts, part

with_mask = bool(model.get("roi_head", {}).get("mask_head"))
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=with_mask),
    dict(type="RandomResize", scale=scale, ratio_range=(0.7, 1.2), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=with_mask),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="train.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="val.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root.rstrip("/") + "/val.json")
test_evaluator = val_evaluator

if "max_iters" in _base_.train_cfg:
    train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 3)
    param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
        dict(
            type="CosineAnnealingLR", by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min_ratio=0.01
        ),
    ]
del max_iters
