"""Maps of the backbone that no part of a model uses, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmgcvit import GCViT, GCViTClassifier
from mmgcvit.engine.unused_maps import require_used_maps, used_maps
from mmgcvit.errors import UsageError

CHANNELS = [16, 32, 64, 128]


class Pyramid(nn.Module):
    """A neck like mmdet's FPN: lateral layers, and a top-down path."""

    def __init__(self, in_channels: Sequence[int], start_level: int = 0, end_level: int = -1) -> None:
        super().__init__()
        self.in_channels, self.start_level, self.end_level = list(in_channels), start_level, end_level
        self.lateral = nn.ModuleList(nn.Conv2d(channels, 8, 1) for channels in in_channels)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        last = len(maps) if self.end_level == -1 else self.end_level + 1
        found = [self.norm(self.lateral[i](maps[i])) for i in range(self.start_level, last)]
        for i in range(len(found) - 1, 0, -1):
            found[i - 1] = found[i - 1] + nn.functional.interpolate(found[i], size=found[i - 1].shape[2:])
        return tuple(found)


class Head(nn.Module):
    """A decode head like mmseg's.

    ``also`` is the index of a map that it uses besides, as DeepLabV3+ does; with ``last`` it only uses the last of the
    maps, as EncNet may.
    """

    def __init__(self, in_index: int | Sequence[int], also: int | None = None, last: bool = False) -> None:
        super().__init__()
        self.in_index, self.also, self.last = in_index, also, last

    def forward(self, maps: Sequence[Tensor], previous: Tensor | None = None) -> Tensor:
        index = [self.in_index] if isinstance(self.in_index, int) else self.in_index
        total = sum(maps[i].mean() for i in index[-1 if self.last else 0 :])
        total = total if self.also is None else total + maps[self.also].mean()
        return total if previous is None else total + previous


class Model(nn.Module):
    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1, **parts: nn.Module) -> None:
        super().__init__()
        self.backbone = GCViT(TINY, out_indices=out_indices, frozen_stages=frozen_stages)
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/x", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("build", "used", "says"),
    [
        (lambda: Model(neck=Pyramid(CHANNELS)), {0, 1, 2, 3}, ()),
        (
            lambda: Model(neck=Pyramid(CHANNELS, 1)),
            {1, 2, 3},
            ("out_indices=(0, 1, 2, 3), but no part of the model uses the maps of stages 0.",
             "model.backbone.out_indices=(1, 2, 3); model.neck.in_channels=[32, 64, 128]; model.neck.start_level=0 "),
        ),
        (
            lambda: Model(neck=nn.Sequential(Pyramid(CHANNELS, 1, 2))),
            {1, 2},
            ("stages 0, 3.", "out_indices=(1, 2); model.neck[0].in_channels=[32, 64]; model.neck[0].start_level=0; "
             "model.neck[0].end_level=-1 "),
        ),
        (lambda: Model(neck=Pyramid(CHANNELS, 1), frozen_stages=1), {1, 2, 3}, ()),
        (lambda: Model((1, 2, 3), neck=Pyramid(CHANNELS[1:])), {0, 1, 2}, ()),
        (lambda: Model(decode_head=Head([0, 1, 2, 3])), {0, 1, 2, 3}, ()),
        (
            lambda: Model(decode_head=Head(-1), auxiliary_head=Head(2)),
            {2, 3},
            ("stages 0, 1.",
             "out_indices=(2, 3); model.decode_head.in_index=1; model.auxiliary_head.in_index=0 "),
        ),
        (
            lambda: Model(decode_head=Head(3, also=0), auxiliary_head=nn.ModuleList([Head([2])])),
            {0, 2, 3},
            ("stages 1.", "out_indices=(0, 2, 3); model.decode_head.in_index=2; model.auxiliary_head[0].in_index=[1] "),
        ),
        (
            lambda: Model(decode_head=Head([1, 2], last=True), auxiliary_head=Head(0)),
            {0, 2},
            ("stages 1, 3.", "out_indices=(0, 2); model.decode_head.in_index=[1]; model.decode_head.in_channels=[64]"),
        ),
        (lambda: Model(decode_head=nn.ModuleList([Head(3), Head([1, 2])]), auxiliary_head=Head(0)), {0, 1, 2, 3}, ()),
        (lambda: GCViTClassifier(dict(arch=TINY)), {0}, ()),
        (lambda: GCViTClassifier(dict(arch=TINY, out_indices=(2, 3))), {1}, ("stages 2.", "out_indices=(3,) ")),
    ],
)  # fmt: skip
def test_used_maps(build: Callable[[], nn.Module], used: set[int], says: Sequence[str]):
    model = build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert used_maps(model) == used
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    require_used_maps(model)  # a single process needs no gradients
    require_used_maps(DistributedDataParallel(model, find_unused_parameters=True))
    if not says:
        require_used_maps(DistributedDataParallel(model))
        return
    with pytest.raises(UsageError) as raised:
        require_used_maps(DistributedDataParallel(model))
    for part in says:
        assert part in str(raised.value)


def test_heads_with_other_inputs_are_left_alone():
    class Other(nn.Module):
        def forward(self, maps: Sequence[Tensor], samples: list) -> Tensor:
            return maps[0]

    model = Model(decode_head=Other())
    assert used_maps(model) == {0, 1, 2, 3}
    require_used_maps(DistributedDataParallel(model))
