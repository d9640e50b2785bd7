"""All private names of other libraries that the package uses exist and behave as expected."""

from __future__ import annotations

import ast
import importlib
import inspect
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, relative_error
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.autograd import forward_ad

from mmgcvit import compat

LIBRARIES = ("torch", "mmengine", "mmcv", "mmdet", "mmseg", "timm")
SOURCES = [
    path for path in sorted((ROOT / "mmgcvit").rglob("*.py")) if path.name != "compat.py" and ".mim" not in path.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_else_imports_private_names(path: Path):
    found = []
    libraries = re.compile(rf"({'|'.join(LIBRARIES)}|nn)\b")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and libraries.match(node.module or ""):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names if libraries.match(alias.name) for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and libraries.match(ast.unparse(node)):
            names = [node.attr]
        else:
            continue
        found += [name for name in names if re.match(r"_(?!_)", name)]
    assert found == []


@pytest.mark.parametrize("name", compat.OVERRIDDEN)
def test_overridden_methods_exist(name: str):
    module, _, cls = name.rpartition(".")
    owner = getattr(importlib.import_module(module), cls)
    for private in compat.OVERRIDDEN[name]:  # a method, or an attribute that __init__ sets
        assert callable(getattr(owner, private, None)) or f"self.{private} = " in inspect.getsource(owner), private


def test_signatures_of_overridden_methods():
    from mmengine.infer import BaseInferencer
    from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
    from timm.data.readers.reader import Reader

    def parameters(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(BaseInferencer._init_model) == ["self", "cfg", "weights", "device"]
    assert parameters(BaseInferencer._load_weights_to_model) == ["self", "model", "checkpoint", "cfg"]
    assert parameters(OptimWrapper._clip_grad) == parameters(AmpOptimWrapper._clip_grad) == ["self"]
    assert parameters(DefaultOptimWrapperConstructor._validate_cfg) == ["self"]
    assert parameters(compat.ParamScheduler._get_value) == ["self"]
    assert parameters(Reader._filename)[:3] == ["self", "index", "basename"]


def test_scheduler_values_and_loop_counters():
    """_get_value returns the learning rates; epoch and iter return _epoch and _iter."""
    from mmengine.runner import EpochBasedTrainLoop

    class Constant(compat.ParamScheduler):
        def _get_value(self) -> list[float]:
            return [0.5 for _ in self.base_values]

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    Constant(optimizer, param_name="lr")
    assert optimizer.param_groups[0]["lr"] == 0.5
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    loop._epoch, loop._iter = 3, 7
    assert (loop.epoch, loop.iter) == (3, 7)


def test_train_loop_of_a_runner():
    from mmengine.runner import Runner

    runner = Runner.__new__(Runner)
    for loop, built in ((None, False), (dict(type="EpochBasedTrainLoop"), False), (object(), True)):
        runner._train_loop = loop
        assert compat.has_train_loop(runner) == built
    assert "_train_loop" in inspect.getsource(Runner.train_loop.fget)


def test_batch_size_that_is_skipped():
    from mmengine.dataset import InfiniteSampler
    from mmengine.runner.loops import _InfiniteDataloaderIterator
    from torch.utils.data import DataLoader

    numbers = list(range(8))
    iterator = _InfiniteDataloaderIterator(DataLoader(numbers, batch_size=2, sampler=InfiniteSampler(numbers)))
    expected = 2 if hasattr(iterator, "_resolve_sampler") else None
    assert compat.skipped_batch_size(iterator) == expected
    next(iterator)
    assert compat.skipped_batch_size(iterator) is None
    assert compat.skipped_batch_size(iter(numbers)) is None


def test_checkpoint_of_a_runner(tmp_path: Path):
    from mmengine.runner import Runner

    runner = Runner(nn.Linear(1, 1), str(tmp_path), load_from="a.pth", experiment_name="load_from", log_level="ERROR")
    assert compat.load_from(runner) == "a.pth"
    assert compat.load_from(object()) == ""


def test_metainfo_of_data_set(tmp_path: Path):
    from mmengine.dataset import BaseDataset

    (tmp_path / "names.txt").write_text("cat\ndog\n")
    found = compat.dataset_metainfo(BaseDataset, dict(classes=str(tmp_path / "names.txt")))
    assert list(found["classes"]) == ["cat", "dog"]
    assert compat.dataset_metainfo(object, dict(a=1)) == dict(a=1)


def test_fused_attention_on_cpu():
    from torch.nn.functional import scaled_dot_product_attention

    called = []
    assert compat.tree_leaves([1, (2, dict(a=3))]) == [1, 2, 3]

    class Calls(compat.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function)
            return function(*args, **(kwargs or {}))

    x = torch.zeros(1, 1, 4, 8)
    with torch.no_grad(), Calls():
        scaled_dot_product_attention(x, x, x)
    fused = compat.flash_attention_on_cpu()
    if fused is not None:
        assert any(function.overloadpacket is fused for function in called)


def test_heads_of_a_two_stage_detector():
    pytest.importorskip("mmcv._ext")
    pytest.importorskip("mmdet")
    from mmdet.models import CascadeRoIHead, StandardRoIHead

    for head, names in ((StandardRoIHead, ["x", "rois"]), (CascadeRoIHead, ["stage", "x", "rois"])):
        for method in (head._bbox_forward, head._mask_forward):
            assert list(inspect.signature(method).parameters)[1 : 1 + len(names)] == names


def test_module_hooks_and_global_hooks():
    """Every kind of module hook is in one of the listed dicts."""
    module = nn.Linear(2, 2)
    assert not any(getattr(module, name) for name in compat.MODULE_HOOKS)
    for register in (
        module.register_forward_hook, module.register_forward_pre_hook,
        module.register_full_backward_hook, module.register_full_backward_pre_hook):  # fmt: skip
        handle = register(lambda *_: None)
        assert sum(len(getattr(module, name)) > 0 for name in compat.MODULE_HOOKS) >= 1
        handle.remove()
        assert not any(getattr(module, name) for name in compat.MODULE_HOOKS)
    assert not any(compat.GLOBAL_HOOKS)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert any(compat.GLOBAL_HOOKS)
    handle.remove()
    assert not any(compat.GLOBAL_HOOKS)


@pytest.mark.skipif(compat.onednn_linear is None, reason="this torch has no such operator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_onednn_linear(dtype: torch.dtype, gelu: bool):
    """Also with transposed, sliced and missing arguments."""
    if dtype is torch.bfloat16 and not compat.onednn_has_bfloat16():
        pytest.skip("oneDNN has no bfloat16 on this processor")
    x, weight = torch.randn(5, 7, 24).to(dtype)[..., ::2], torch.randn(12, 10).to(dtype).T
    for bias in (None, torch.randn(10).to(dtype)):
        wanted = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        wanted = nn.functional.gelu(wanted) if gelu else wanted
        got = compat.onednn_linear(x, weight, bias, *(compat.GELU if gelu else compat.PLAIN))
        assert got.dtype is dtype
        assert got.is_contiguous()
        assert relative_error(got.double(), wanted) < (1e-6 if dtype is torch.float32 else 4e-3)
        if not gelu:
            added = torch.randn(10, 5, 7).to(dtype).permute(1, 2, 0)
            got = compat.onednn_linear_sum(x, added, weight, bias, "add")
            assert got.dtype is dtype
            assert relative_error(got.double(), added.double() + wanted) < (1e-6 if dtype is torch.float32 else 4e-3)


def test_softmax_backward_into_given_memory():
    x = torch.randn(3, 5, requires_grad=True)
    gradient, out = torch.randn(3, 5), torch.empty(3, 5)
    y = x.softmax(-1)
    (wanted,) = torch.autograd.grad(y, x, gradient)
    assert compat.softmax_backward(gradient, y.detach(), out) is out
    assert relative_error(out, wanted) < 1e-6


def test_torch_state_queries():
    assert not compat.functorch_is_active()
    assert compat.forward_ad_level() == -1
    with forward_ad.dual_level():
        assert compat.forward_ad_level() >= 0
    seen: list[bool] = []
    torch.func.grad(lambda x: seen.append(compat.functorch_is_active()) or x.sum())(torch.ones(2))
    assert seen == [True]
    enabled = compat.onednn_is_enabled()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not compat.onednn_is_enabled()
    assert compat.onednn_is_enabled() == enabled
    assert not compat.is_compiling()


def test_is_built_from():
    kinds = (nn.Sequential, nn.Linear)
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    assert compat.is_built_from(module, kinds, "mmgcvit.")
    assert not compat.is_built_from(module, (nn.Sequential,), "mmgcvit.")
    assert compat.is_built_from(module, (), "torch.nn.")
    module[0].forward = module[0].forward  # replaced on the instance
    assert not compat.is_built_from(module, kinds, "mmgcvit.")


def test_is_compiled():
    module = nn.Linear(2, 2)
    assert not compat.is_compiled(module)
    assert compat.is_compiled(torch.compile(module, backend="eager"))
    module.compile(backend="eager")
    assert compat.is_compiled(module)


def test_gradients_of_torchvision_operators():
    """They equal those of autograd through the public functions, also where regions or channels have none."""
    from torchvision.ops import deform_conv2d, roi_align

    torch.manual_seed(0)
    maps = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 1, 9, 8], [1, 3, 2, 3, 2]]).double()
    pooled = roi_align(maps, rois, (2, 3), 0.5, 2, True)
    weight = torch.randn_like(pooled)
    found = compat.roi_align_gradient(weight, rois, 0.5, (2, 3), (2, 4, 6, 7), 2, True)
    torch.testing.assert_close(found, torch.autograd.grad(pooled, maps, weight)[0])

    kernel = torch.randn(6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(2, 24, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    geometry = (2, 2), (1, 0), (1, 2)
    for factors in (None, mask):
        output = deform_conv2d(maps, offset, kernel, None, *geometry, mask=factors)
        weight = torch.randn_like(output)
        found = compat.deform_conv2d_gradients(weight, maps, kernel, offset, factors, *geometry, (2, 2))
        tensors = [maps, kernel, offset] + [mask] * (factors is not None)
        wanted = torch.autograd.grad(output, tensors, weight)
        torch.testing.assert_close(found[: len(wanted)], wanted)


def test_torchvision_with_cuda():
    import torchvision

    found = compat.torchvision_has_cuda()
    assert found is (torch.version.cuda is not None and "+cpu" not in torchvision.__version__)


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return dict(x=torch.tensor([float(index)]), index=index)


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, index: torch.Tensor, mode: str = "tensor") -> Any:
        y = self.layer(x)
        return dict(loss=y.square().mean()) if mode == "loss" else list(index)


class Indices(BaseMetric):
    default_prefix = "indices"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [int(i) for i in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(sum=sum(results))


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("by_epoch", [False, True])
def test_end_workers(tmp_path, by_epoch: bool, persistent: bool):
    def loader(sampler: str) -> dict:
        sampled = dict(type=sampler, shuffle=False)
        options = dict(num_workers=1, persistent_workers=persistent, collate_fn=dict(type="default_collate"))
        return dict(batch_size=2, dataset=Numbers(), sampler=sampled, **options)

    steps = dict(by_epoch=True, max_epochs=1) if by_epoch else dict(by_epoch=False, max_iters=3, val_interval=3)
    runner = Runner(
        Line(), str(tmp_path), loader("DefaultSampler" if by_epoch else "InfiniteSampler"), loader("DefaultSampler"),
        train_cfg=steps, val_cfg={}, val_evaluator=Evaluator(Indices()), log_level="ERROR",
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)), default_scope="mmengine",
        default_hooks=dict(checkpoint=None, logger=None),
    )  # fmt: skip
    before = multiprocessing.active_children()
    compat.end_workers(runner)  # nothing has started
    runner.train()
    workers = [worker for worker in multiprocessing.active_children() if worker not in before]
    assert bool(workers) == (persistent or not by_epoch)
    compat.end_workers(runner)
    for worker in workers:
        worker.join(60)  # on a busy machine
        assert worker.exitcode == 0  # -15, if torch had waited in vain
    assert runner.val() == {"indices/sum": 28}  # starts workers again
    compat.end_workers(runner)


def test_encoding_of_boxes_in_dino():
    """mmdet has the features for each coordinate that the first layer after their encoding takes."""
    coordinate_to_encoding = pytest.importorskip("mmdet.models.layers.transformer.utils").coordinate_to_encoding
    features = compat.dino_coordinate_features(256)
    assert features in (128, 256)
    assert coordinate_to_encoding(torch.rand(1, 2, 4), features).shape == (1, 2, 4 * features)
