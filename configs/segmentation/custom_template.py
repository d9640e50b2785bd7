# Any segmentor of this folder on your own pictures. Copy this file beside itself, change two things, where the data is
# and the class names, and give the copy to tools/check_data.py and tools/train.py.
#
#   data_root/images/train/NAME.jpg        pictures
#   data_root/annotations/train/NAME.png   label maps of their sizes, 8 bits a pixel: the first class is 0, the next
#                                          1, ...; 255 is ignored
#   data_root/images/val/, data_root/annotations/val/    the same, of other pictures
#
# The base says what is trained. These learn some dozens of pictures from scratch, on a CPU, in minutes:
#   ./_base_/upernet_gcvit-nano.py
#   ./_base_/fpn_gcvit-nano.py         Semantic FPN
#   ./_base_/segformer_gcvit-nano.py
# and these fine-tune published ImageNet weights on a GPU; take short = 512 and crop_size = (512, 512) with them, and
# --auto-scale-lr:
#   ./gcvit-tiny_upernet_8xb2-20k_ade20k-512x512.py, ./gcvit-tiny_upernet_8xb2-160k_ade20k-512x512_1gpu.py, or any other
#   ADE20K config here
# (With a copy elsewhere: _base_ = 'mmgcvit::segmentation/_base_/upernet_gcvit-nano.py')
_base_ = "./_base_/upernet_gcvit-nano.py"

data_root = "data/my_data/"
classes = ("background", "cat", "dog")  # in the order of the label maps' values

palette = None  # colours of drawings, such as [[0, 0, 0], [220, 20, 60], [0, 130, 200]]; None: some
img_suffix, seg_map_suffix = ".jpg", ".png"
# Whether 0 in the label maps is none of the classes, to be ignored, and 1 the first of them. For data like ADE20K's.
# Not where 0 is a background that is to be learnt, as it is then the first of the classes.
reduce_zero_label = False
short = 192  # pictures are brought to this short side, in pixels
# Height and width of what training sees at a time, in multiples of 32. Best most of a picture: what lies around a thing
# helps to tell it from what has its colours.
crop_size = (192, 256)
# Of pictures taken from above ['horizontal', 'vertical', 'diagonal']; [] where a mirrored thing is another one.
flips = ["horizontal"]
# How often training sees a picture in grey, so that shapes are learnt too: for backgrounds of colours that it does not
# have. UPerNet, which sees more of what lies around, may do better with 0: mIoU 0.825 against 0.794 with 0.3, on the
# README's three validation pictures.
grey = 0.3
max_iters = 1200  # of a nano base; some hundred pictures or more deserve more (the others have their own)

# Nothing below needs a change. Every head of the base gets as many classes.
model = _base_.model
for name in ("decode_head", "auxiliary_head"):
    for head in [model.get(name)] if isinstance(model.get(name), dict) else model.get(name) or []:
        head.num_classes = len(classes)
        if "class_weight" in head.get("loss_cls", {}):  # Mask2Former's has one for `nothing` too
            head.loss_cls.class_weight = [1.0] * len(classes) + head.loss_cls.class_weight[-1:]
        del head
del name
model.data_preprocessor.size = crop_size

scale = (4 * short, short)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    *([dict(type="RandomFlip", prob=1 - 1 / (len(flips) + 1), direction=flips)] if flips else []),
    dict(type="PhotoMetricDistortion"),
    *([dict(type="RandomGrayscale", prob=grey, keep_channels=True)] if grey else []),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(4 * short * ratio), int(short * ratio)), keep_ratio=True)
                for ratio in (0.75, 1.0, 1.25)
            ],
            [
                dict(type="RandomFlip", prob=0.0),
                *([dict(type="RandomFlip", prob=1.0)] if "horizontal" in flips else []),
            ],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
data = dict(
    _delete_=True,
    _scope_="mmseg",
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=dict(classes=classes) if palette is None else dict(classes=classes, palette=palette),
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path="images/train", seg_map_path="annotations/train"), pipeline=train_pipeline, **data
    )
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path="images/val", seg_map_path="annotations/val"), pipeline=test_pipeline, **data
    )
)
test_dataloader = val_dataloader
del data

if _base_.train_cfg.max_iters < 10000:
    train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
    param_scheduler = _base_.param_scheduler
    param_scheduler[-1].update(end=max_iters, T_max=max_iters - 50)
    default_hooks = dict(checkpoint=dict(interval=max_iters // 2))
del max_iters
