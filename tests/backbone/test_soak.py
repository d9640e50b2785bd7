"""Memory of long runs over images of random sizes: it must not grow.

``make soak`` runs each test for fifteen minutes (``SOAK_SECONDS``), the slow tests for one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

STATUS = Path("/proc/self/status")
SECONDS = float(os.environ.get("SOAK_SECONDS", 60))
LARGEST = 160  # pixels
EVERY = 20  # steps between two measurements
LEAST = 20  # measurements
LIMIT = 5.0  # MB; growth in the second half of a run, of a straight line through the measurements
#: oneDNN, and torch's interface to it, each keep the last 1024 convolutions and products of different shapes with their
#: code: 260 MB, for which it would take thousands of steps. Smaller caches are full soon.
ONEDNN = dict(ONEDNN_PRIMITIVE_CACHE_CAPACITY="64", LRU_CACHE_CAPACITY="64")


def resident() -> float:
    """Resident memory of this process in MB, without mapped files, and what the allocator keeps for later."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # only in glibc
        ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"RssAnon:\s*(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def forward_steps() -> Callable[[random.Random], None]:
    """Forward passes of a backbone in each pad mode."""
    import torch
    from conftest import TINY

    from mmgcvit import GCViT

    models = [GCViT(TINY, pad=pad).eval() for pad in ("input", "stage", "window")]

    def step(chance: random.Random) -> None:
        images = torch.rand(chance.randint(1, 3), 3, chance.randint(1, LARGEST), chance.randint(1, LARGEST))
        with torch.no_grad():
            chance.choice(models)(images)

    return step


def training_steps() -> Callable[[random.Random], None]:
    """Training of a Mask R-CNN."""
    import torch
    from detectors import CLASSES, config
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.optim import OptimWrapper
    from mmengine.registry import MODELS
    from mmengine.structures import InstanceData

    model = MODELS.build(config("mask-rcnn")).train()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), 1e-4), clip_grad=dict(max_norm=1.0))

    def step(chance: random.Random) -> None:
        images, samples = [], []
        for _ in range(chance.randint(1, 3)):
            height, width = chance.randint(32, LARGEST), chance.randint(32, LARGEST)
            count = chance.randint(0, 6)
            corners = torch.rand(count, 2) * torch.tensor([width - 20.0, height - 20.0])
            boxes = torch.cat([corners, corners + 8 + 12 * torch.rand(count, 2)], 1)
            masks = np.zeros((count, height, width), np.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
            labels = torch.randint(CLASSES, (count,))
            sample = DetDataSample(
                metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0)),
                gt_instances=InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, height, width)),
            )
            images.append(torch.randint(256, (3, height, width), dtype=torch.uint8))
            samples.append(sample)
        losses = model.train_step(dict(inputs=images, data_samples=samples), optimizer)
        assert all(torch.isfinite(value).all() for value in losses.values())

    return step


STEPS = dict(forward=forward_steps, training=training_steps)


def soak(kind: str, seconds: float) -> list[tuple[float, float]]:
    """Run steps for some time, or more on a busy machine; returns seconds since the start and resident memory in MB."""
    step, chance = STEPS[kind](), random.Random(0)
    start, measured = time.monotonic(), []
    for count in range(10**9):
        if count % EVERY == 0:
            measured.append((time.monotonic() - start, resident()))
            if measured[-1][0] > seconds and len(measured) > LEAST:
                break
        step(chance)
    return measured


def growth(measured: list[tuple[float, float]]) -> float:
    """Growth in MB over the second half of the time, by least squares."""
    times, memory = np.array(measured).T
    late = times > times[-1] / 2
    return float(np.polyfit(times[late], memory[late], 1)[0] * np.ptp(times[late]))


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads the memory from /proc")
@pytest.mark.parametrize("kind", STEPS)
def test_memory_does_not_grow(kind: str):
    if kind == "training":
        pytest.importorskip("mmdet")
        pytest.importorskip("mmcv._ext")
    paths = [*map(str, (ROOT, ROOT / "tests", ROOT / "tests/export")), *filter(None, [os.environ.get("PYTHONPATH")])]
    # in a process of its own: the memory that other tests have freed would hide a leak
    done = subprocess.run(
        [sys.executable, __file__, kind, str(SECONDS)], capture_output=True, text=True, check=False,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1") | ONEDNN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    memory = [value for _, value in measured]
    found = growth(measured)
    steps = EVERY * (len(measured) - 1)
    print(
        f"{kind}: {steps} steps in {measured[-1][0]:.0f} s; resident memory: {memory[0]:.1f} MB at first, "
        f"{memory[len(memory) // 2]:.1f} MB in the middle, {memory[-1]:.1f} MB at the end, at most {max(memory):.1f} "
        f"MB; slope of the second half {found:+.2f} MB, {2000 * found / steps:+.3f} kB a step"
    )
    assert len(measured) > LEAST
    assert found < LIMIT


def test_growth_is_found():
    assert growth([(t, 500 + 20 * min(t, 400) + 0.05 * t) for t in range(1000)]) == pytest.approx(25, rel=0.01)


if __name__ == "__main__":
    print(json.dumps(soak(sys.argv[1], float(sys.argv[2]))))
