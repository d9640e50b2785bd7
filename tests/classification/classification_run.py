"""A small training run of a classifier: coloured squares, a tiny arch, mmengine's Runner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import TINY
from mmengine.config import Config
from PIL import Image

COLOURS = dict(blue=(20, 30, 200), green=(30, 200, 20), red=(220, 30, 20))


def make_tree(root: Path, train: int = 8, val: int = 3) -> Path:
    """Create noisy images in three colours."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noisy = np.clip(np.array(colour) + rng.integers(-20, 20, (40, 48, 3)), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def config(tree: Path, work_dir: Path, epochs: int = 2, batch_size: int = 4, workers: int = 2, **more) -> Config:
    """Config with 24 images in 6 batches per epoch; transforms, mixing, erasing and drop path are random."""

    def loader(split: str, training: bool) -> dict:
        transform = dict(type="mmgcvit.TimmTransform", is_training=training, input_size=32)
        if training:
            transform.update(scale=(0.3, 1.0), auto_augment="rand-m9-mstd0.5-inc1", interpolation="random")
        return dict(
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=training,
            sampler=dict(type="DefaultSampler", shuffle=training),
            collate_fn=dict(type="default_collate"),
            dataset=dict(
                type="mmgcvit.ClassificationDataset",
                data_root=str(tree),
                split=split,
                test_mode=not training,
                pipeline=[dict(type="mmgcvit.LoadPillowImage"), transform],
            ),
        )

    return Config(
        dict(
            default_scope="mmengine",
            launcher="none",
            work_dir=str(work_dir),
            experiment_name=f"{work_dir.name}-{len(more)}-{epochs}",
            model=dict(
                type="GCViTClassifier",
                backbone=dict(type="GCViT", arch=TINY, drop_path_rate=0.3),
                num_classes=3,
                data_preprocessor=dict(
                    type="mmgcvit.ClassificationPreprocessor",
                    erasing=dict(probability=0.25, mode="pixel"),
                    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
                ),
            ),
            train_dataloader=loader("train", True),
            val_dataloader=loader("val", False),
            test_dataloader=loader("val", False),
            val_evaluator=dict(type="mmgcvit.TopKAccuracy", topk=(1, 2)),
            test_evaluator=dict(type="mmgcvit.TopKAccuracy", topk=(1, 2)),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=2e-3)),
            param_scheduler=dict(
                type="mmgcvit.WarmupCosineLR",
                warmup=1,
                T_max=epochs,
                by_epoch=True,
                begin=0,
                end=epochs,
                convert_to_iter_based=True,
            ),
            train_cfg=dict(type="mmgcvit.ResumableTrainLoop", max_epochs=epochs, val_interval=epochs),
            val_cfg=dict(type="mmgcvit.EMAValLoop"),
            test_cfg=dict(type="TestLoop"),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=4),
            ),
            custom_hooks=[
                dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.2),
                dict(type="mmgcvit.ClassificationHook"),
            ],
            randomness=dict(seed=1, diff_rank_seed=True, deterministic=True),
            log_level="WARNING",
        )
        | more
    )
