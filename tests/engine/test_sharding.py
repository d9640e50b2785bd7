"""Two processes with sharded parameters clip gradients like a single process with all parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import TINY, randomise, relative_error
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.registry import OPTIM_WRAPPERS
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from mmgcvit import GCViTClassifier

WORLD = 2
CLIP = dict(max_norm=0.05, norm_type=2)


def build() -> GCViTClassifier:
    torch.manual_seed(0)
    return randomise(GCViTClassifier(dict(arch=TINY), num_classes=5)).train()


def step(model: torch.nn.Module, data: dict, kind: str) -> float:
    """Take one SGD step like a runner; returns the logged gradient norm."""
    wrapper = OPTIM_WRAPPERS.build(
        dict(type=kind, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), clip_grad=dict(CLIP))
    )
    model.train_step(data, wrapper)
    return float(wrapper.message_hub.get_scalar("train/grad_norm").current())


def batch() -> dict:
    generator = torch.Generator().manual_seed(5)
    return dict(inputs=torch.randn(4, 3, 64, 64, generator=generator), targets=torch.tensor([0, 4, 2, 1]))


def worker(rank: int, folder: str, kind: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    model = MMFullyShardedDataParallel(build(), device_id=torch.device("cpu"), use_orig_params=True)
    data = {name: value.chunk(WORLD)[rank] for name, value in batch().items()}
    norm = step(model, data, kind)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
        torch.save((norm, model.state_dict()), f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["mmgcvit.FSDPOptimWrapper", "OptimWrapper"])
def test_sharded_gradients_are_clipped_by_global_norm(tmp_path: Path, kind: str):
    """With mmengine's own wrapper, the result differs."""
    mp.spawn(worker, (str(tmp_path), kind), nprocs=WORLD)
    single = build()
    norm = step(single, batch(), "mmgcvit.FSDPOptimWrapper")  # for an unsharded model, mmengine's clipping
    assert norm > 2 * CLIP["max_norm"]
    errors = []
    for rank in range(WORLD):
        found, state = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        assert (found == pytest.approx(norm, rel=1e-4)) == (kind == "mmgcvit.FSDPOptimWrapper")
        before = build().state_dict()
        errors += [
            relative_error(state[name] - before[name], value - before[name])
            for name, value in single.state_dict().items()
            if value.is_floating_point()
        ]
    assert (max(errors) < 1e-2) == (kind == "mmgcvit.FSDPOptimWrapper")
