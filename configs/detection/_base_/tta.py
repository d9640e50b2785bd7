# Test-time augmentation: three scales with horizontal flip; boxes are merged by NMS. `--tta` of mmgcvit test and
# mmgcvit predict uses it, relative to the test scale of the config. For mmdet's tools, add this file to the
# `_base_` list of a config. TTA yields no masks: set test_evaluator.metric='bbox' for models with a mask head.
tta_model = dict(type='mmgcvit.BoxTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((1066, 640), (1333, 800), (1600, 960))],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
