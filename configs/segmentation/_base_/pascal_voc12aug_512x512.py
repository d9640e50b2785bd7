# Pascal VOC 2012 augmented with SBD (SegmentationClassAug, aug.txt): 10582 training images, 21 classes.
_base_ = './ade20k_512x512.py'

data_root = 'data/VOCdevkit/VOC2012'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                _scope_='mmseg',
                type='PascalVOCDataset',
                data_root=data_root,
                data_prefix=dict(img_path='JPEGImages', seg_map_path=folder),
                ann_file=f'ImageSets/Segmentation/{split}.txt',
                pipeline=_base_.train_pipeline,
            )
            for folder, split in (('SegmentationClass', 'train'), ('SegmentationClassAug', 'aug'))
        ],
    )
)
val_dataloader = dict(
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
    )
)
test_dataloader = val_dataloader
