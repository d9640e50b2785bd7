# Template for training any segmentor of this folder on your own dataset. Copy this file within this folder, set
# `data_root` and `classes`, and pass the copy to mmgcvit check-data and mmgcvit train.
#
#   data_root/images/train/NAME.jpg                      images
#   data_root/annotations/train/NAME.png                 8-bit label maps of the same size; 255 is ignored
#   data_root/images/val/, data_root/annotations/val/    validation images and their label maps
#
# `_base_` selects the model. These models train from scratch on a few dozen images, on a CPU, within minutes:
#   ./_base_/upernet_gcvit-nano.py
#   ./_base_/fpn_gcvit-nano.py         Semantic FPN
#   ./_base_/segformer_gcvit-nano.py
# These fine-tune ImageNet weights on a GPU; set short = 512 and crop_size = (512, 512), and train with --auto-scale-lr:
#   ./gcvit-tiny_upernet_8xb2-20k_ade20k-512x512.py, or any other ADE20K config
# If the copy is in another folder, use _base_ = 'mmgcvit::segmentation/_base_/upernet_gcvit-nano.py'.
_base_ = './_base_/upernet_gcvit-nano.py'

data_root = 'data/my_data/'
classes = ('background', 'cat', 'dog')  # in the order of the label values, from 0

palette = None  # RGB colours for visualization, e.g. [[0, 0, 0], [220, 20, 60], [0, 130, 200]]; None: automatic
img_suffix, seg_map_suffix = '.jpg', '.png'
# If True, label 0 is ignored and label 1 is the first class, as in ADE20K. Keep False if label 0 is a background class
# to be learned.
reduce_zero_label = False
short = 192  # images are resized to this short side, in pixels
# Height and width of a training crop, in multiples of 32. Crops should cover most of the image: context helps to
# distinguish objects of similar colour.
crop_size = (192, 256)
# Use ['horizontal', 'vertical', 'diagonal'] for aerial images, and [] if flipping changes the class of an object.
flips = ['horizontal']
# Probability of converting a training image to greyscale, so that the model also learns shapes and generalizes to
# backgrounds of unseen colours. UPerNet has more context and may do better with 0: on the README's three validation
# images its mIoU is 0.825 with 0 and 0.794 with 0.3.
grey = 0.3
max_iters = 1200  # for the nano models; increase it for several hundred images (the others keep their own)
validations = 2  # number of validations in a run of the nano models; early stopping needs more of them
keep_best = True  # also keep the best checkpoint, best_*.pth
early_stopping = None  # stop after this many validations in a row without a better result, e.g. 5
ema = None  # use a moving average of the weights; the weight of an iteration, e.g. 0.01 for the nano models

# No changes are needed below. All heads get the right number of classes.
model = _base_.model
for name in ('decode_head', 'auxiliary_head'):
    for head in [model.get(name)] if isinstance(model.get(name), dict) else model.get(name) or []:
        head.num_classes = len(classes)
        if 'class_weight' in head.get('loss_cls', {}):  # Mask2Former has an extra weight for `no object`
            head.loss_cls.class_weight = [1.0] * len(classes) + head.loss_cls.class_weight[-1:]
        del head
del name
model.data_preprocessor.size = crop_size

scale = (4 * short, short)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *([dict(type='RandomFlip', prob=1 - 1 / (len(flips) + 1), direction=flips)] if flips else []),
    dict(type='PhotoMetricDistortion'),
    *([dict(type='RandomGrayscale', prob=grey, keep_channels=True)] if grey else []),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(int(4 * short * ratio), int(short * ratio)), keep_ratio=True)
                for ratio in (0.75, 1.0, 1.25)
            ],
            [
                dict(type='RandomFlip', prob=0.0),
                *([dict(type='RandomFlip', prob=1.0)] if 'horizontal' in flips else []),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
data = dict(
    _delete_=True,
    _scope_='mmseg',
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes) if palette is None else dict(classes=classes, palette=palette),
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'), pipeline=train_pipeline, **data
    )
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'), pipeline=test_pipeline, **data
    )
)
test_dataloader = val_dataloader
del data

default_hooks = dict(checkpoint=dict(save_best='mIoU' if keep_best else None, rule='greater'))
if _base_.train_cfg.max_iters < 10000:
    train_cfg = dict(max_iters=max_iters, val_interval=max(max_iters // validations, 1))
    default_hooks['checkpoint']['interval'] = max(max_iters // 2, 1)
del max_iters
custom_hooks = []
if early_stopping is not None:
    custom_hooks.append(
        dict(type='EarlyStoppingHook', monitor='mIoU', rule='greater', min_delta=0.1, patience=early_stopping)
    )
if ema is not None:
    custom_hooks.append(dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=ema))
