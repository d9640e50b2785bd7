"""Two processes that split a batch take the same step as one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import TINY, randomise, relative_error
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmgcvit.backbone import GCViT

WORLD = 2


def build(arguments: dict) -> GCViT:
    torch.manual_seed(0)
    return randomise(GCViT(TINY, **arguments)).train()


def step(model: torch.nn.Module, images: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(m.square().mean() for m in model(images)).backward()
    optimizer.step()


def batch() -> torch.Tensor:
    return torch.randn(4, 3, 50, 70, generator=torch.Generator().manual_seed(5))


def worker(rank: int, folder: str, arguments: dict) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    model = build(arguments)
    step(DistributedDataParallel(model), batch().chunk(WORLD)[rank])  # unused parameters would raise an error here
    torch.save(model.state_dict(), f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "arguments", [dict(), dict(with_cp=True, pad="window"), dict(out_indices=(1, 2), frozen_stages=1, pad="stage")]
)
def test_two_processes_equal_one(tmp_path: Path, arguments: dict):
    mp.spawn(worker, (str(tmp_path), arguments), nprocs=WORLD)
    single = build(arguments)
    before = {k: v.clone() for k, v in single.state_dict().items()}
    step(single, batch())
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(WORLD)]
    for name, value in single.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        assert relative_error(ranks[0][name], value) < 1e-5, name
    assert any(not torch.equal(before[name], value) for name, value in single.state_dict().items())
