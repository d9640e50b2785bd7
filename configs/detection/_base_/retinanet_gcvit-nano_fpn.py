# A narrow RetinaNet with the same backbone, dataset and schedule.
_base_ = './faster-rcnn_gcvit-nano_fpn.py'

width = _base_.width
model = dict(
    _delete_=True,
    _scope_='mmdet',  # loaded as mmgcvit::detection/..., mmengine would search the mmgcvit scope
    type='RetinaNet',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone={**_base_.model.backbone, 'out_indices': (1, 2, 3)},
    neck=dict(
        type='FPN',
        in_channels=_base_.model.neck.in_channels[1:],
        out_channels=width,
        add_extra_convs='on_input',
        num_outs=4,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=80,
        in_channels=width,
        stacked_convs=2,
        feat_channels=width,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
    ),
)
