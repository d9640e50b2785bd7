# Test-time augmentation: three scales, each mirrored too, boxes merged by NMS. tools/test.py and tools/image_demo.py
# use it with --tta, at the config's own scale; for mmdet's tools add this file to a config's _base_
# list (with masks, and test_evaluator.metric='bbox' too: there are none to evaluate).
tta_model = dict(type="mmgcvit.BoxTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=scale, keep_ratio=True) for scale in ((1066, 640), (1333, 800), (1600, 960))],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations", with_bbox=True)],
            [
                dict(
                    type="PackDetInputs",
                    meta_keys=(
                        "img_id",
                        "img_path",
                        "ori_shape",
                        "img_shape",
                        "scale_factor",
                        "flip",
                        "flip_direction",
                    ),
                )
            ],
        ],
    ),
]
