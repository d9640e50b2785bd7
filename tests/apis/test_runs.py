"""How apis.train and apis.test process configs and checkpoints."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import pytest
import torch
from classification_run import config, make_tree
from conftest import ROOT, TINY
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from safetensors.torch import load_file

from mmgcvit import apis
from mmgcvit.apis import UsageError, launch, precision, runs
from mmgcvit.checkpoint.weights import WEIGHTS
from mmgcvit.classification import ClassificationPreprocessor
from mmgcvit.datasets.classification import TimmTransform
from mmgcvit.optim.fused import MergedGroupsHook, supports_fused

CLASSES = ["blue", "green", "red", "x", "y"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("colours"))


def for_classes(tree: Path, folder: Path, **more) -> Config:
    """Config to test the fixture's classifier (five classes) on nine images, with an EMAHook like the recipe."""
    cfg = config(tree, folder, workers=0, test_evaluator=dict(type="mmgcvit.TopKAccuracy", topk=(1, 5)), **more)
    cfg.model.num_classes = 5
    cfg.test_dataloader.dataset.classes = CLASSES
    assert "EMAHook" in {hook.type for hook in cfg.custom_hooks}
    return cfg


def probabilities(table: Path) -> torch.Tensor:
    """Read the probabilities (images, 5), in the order of the classes."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return torch.tensor(
        [
            [next(float(row[f"probability_{k}"]) for k in range(1, 6) if row[f"class_{k}"] == name) for name in CLASSES]
            for row in rows
        ]
    )


@pytest.fixture(scope="module")
def expected(tree: Path, classifier) -> torch.Tensor:
    """The probabilities computed directly by the classifier."""
    transform = TimmTransform(is_training=False, input_size=32).transform
    images = [Image.open(path).convert("RGB") for path in sorted((tree / "val").glob("*/*.png"))]
    inputs = torch.stack([torch.as_tensor(transform(image)) for image in images])
    with torch.no_grad():
        return classifier(**ClassificationPreprocessor()(dict(inputs=inputs)), mode="predict")


@pytest.mark.parametrize("kind", ["nvidia", "timm", "timm bare", "timm://", "gcvit://", "mmgcvit", "keras"])
def test_files_of_all_publishers(tmp_path: Path, tree: Path, files, expected, kind: str, monkeypatch):
    """With an EMAHook in the config: bare state dicts, safetensors, h5, and names; the head is loaded too."""
    if kind in ("timm bare", "timm://", "gcvit://"):
        path = tmp_path / "bare.pth"
        torch.save(load_file(files["timm"]), path)
        if kind != "timm bare":
            name = "timm://gcvit_tiny.in1k" if kind == "timm://" else "gcvit://tiny_in1k"
            monkeypatch.setitem(WEIGHTS, name, dataclasses.replace(WEIGHTS[name], sha256=""))
            monkeypatch.setenv("MMGCVIT_MIRROR", str(tmp_path))
            monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
            path.rename(tmp_path / WEIGHTS[name].filename)
            path = name
    elif kind not in files:
        pytest.skip("h5py is not installed")
    else:
        path = files[kind]
    apis.test(for_classes(tree, tmp_path / "run"), str(path), out=str(tmp_path / "table.csv"))
    found = probabilities(tmp_path / "table.csv")
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_optimizer_of_a_run(tmp_path: Path, tree: Path):
    runner = apis.train(config(tree, tmp_path / "run", workers=0))
    supported = supports_fused(torch.optim.AdamW, "cpu")  # the fused one where torch has it
    assert {bool(group["fused"]) for group in runner.optim_wrapper.param_groups} == {supported}
    (merging,) = (hook for hook in runner.hooks if isinstance(hook, MergedGroupsHook))
    assert merging.optimizers == [runner.optim_wrapper.optimizer]
    (saved,) = (tmp_path / "run").glob("*.py")
    assert "fused=" not in saved.read_text()  # a copy of the config, which must work on other devices, too
    # A resumed run goes on with the implementation in its checkpoint, which may be from before fused ones were chosen.
    checkpoint = tmp_path / "run/iter_12.pth"
    for fused in (supported, False):
        content = torch.load(checkpoint, weights_only=False)
        for group in content["optimizer"]["param_groups"]:
            group["fused"] = fused or None
        torch.save(content, checkpoint)
        runner = apis.train(config(tree, tmp_path / "run", workers=0), resume=str(checkpoint))
        optimizer = runner.optim_wrapper.optimizer
        assert {bool(group["fused"]) for group in optimizer.param_groups} == {fused}
        assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def test_averaged_weights_of_a_run_are_evaluated(tmp_path: Path, tree: Path):
    runner = apis.train(config(tree, tmp_path / "run", workers=0))
    saved = torch.load(tmp_path / "run/iter_12.pth", weights_only=False)
    assert "ema_state_dict" in saved
    apis.test(
        config(tree, tmp_path / "test", workers=0), str(tmp_path / "run/iter_12.pth"), out=str(tmp_path / "table.csv")
    )
    with (tmp_path / "table.csv").open(newline="") as file:
        found = [float(row["probability_1"]) for row in csv.DictReader(file)]
    runner.model.load_state_dict(saved["state_dict"])
    batches = [runner.model.val_step(batch) for batch in runner.val_dataloader]
    assert found == pytest.approx(torch.cat(batches).max(1).values.tolist(), abs=2e-6)


def test_invalid_checkpoints(tmp_path: Path, tree: Path, files, classifier):
    with pytest.raises(UsageError, match=r"does not belong to the model of the config: it lacks head \(2 tensors\)"):
        apis.test(for_classes(tree, tmp_path / "run"), str(files["nvidia-detection"]))
    cfg = for_classes(tree, tmp_path / "other")
    cfg.model.num_classes = 6
    with pytest.raises(UsageError, match=r"head.weight \(5, 128\), in the model \(6, 128\)"):
        apis.test(cfg, str(files["mmgcvit"]))
    state = classifier.state_dict()
    torch.save(dict(state_dict=dict(state, **{"head.bias": state["head.bias"] * float("nan")})), tmp_path / "nan.pth")
    with pytest.raises(UsageError, match=r"nan.pth': NaN or infinite values in 1 tensor: head.bias"):
        apis.test(for_classes(tree, tmp_path / "nan"), str(tmp_path / "nan.pth"))
    order = dict(state_dict=state, meta=dict(dataset_meta=dict(classes=[*CLASSES[1:], CLASSES[0]])))
    torch.save(order, tmp_path / "order.pth")
    for call in (
        apis.test,
        lambda cfg, path: apis.predict(cfg, path, [tree / "val/red"], str(tmp_path / "out"), "cpu"),
    ):
        with pytest.raises(
            UsageError, match=r"order.pth'.*the checkpoint has green, red, x, y, blue; the config has blue"
        ):
            call(for_classes(tree, tmp_path / "order"), str(tmp_path / "order.pth"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "half.pth").write_bytes(files["mmgcvit"].read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"half.pth' \(3,000 bytes\): truncated or damaged"):
        apis.test(for_classes(tree, tmp_path / "half"), str(tmp_path / "half.pth"))
    with pytest.raises(UsageError, match=r"weights 'gcvit://huge'; allowed: gcvit://xxtiny_in1k"):
        apis.test(for_classes(tree, tmp_path / "name"), "gcvit://huge")


@HOOKS.register_module()
class Steps(Hook):
    """Records the weights and the learning rate before the run and after each iteration."""

    kept: list[dict]
    rates: list[float]

    def before_train(self, runner) -> None:
        Steps.kept, Steps.rates = [{k: v.clone() for k, v in runner.model.state_dict().items()}], []

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        Steps.kept.append({k: v.clone() for k, v in runner.model.state_dict().items()})
        Steps.rates += runner.optim_wrapper.get_lr()["lr"][:1]


def steps(tree: Path, folder: Path, count: int) -> tuple[list[dict], list[float], dict]:
    """Train two deterministic epochs, eight images per step in ``count`` batches; also returns the averaged weights."""
    cfg = config(
        tree, folder, batch_size=8 // count, workers=0, auto_scale_lr=dict(base_batch_size=16), param_scheduler=None
    )
    cfg.model.backbone = dict(type="GCViT", arch=TINY)
    cfg.model.data_preprocessor = dict(type="mmgcvit.ClassificationPreprocessor")
    cfg.train_dataloader.dataset.pipeline[1] = dict(type="mmgcvit.TimmTransform", is_training=False, input_size=32)
    cfg.optim_wrapper = dict(accumulative_counts=count, optimizer=dict(type="SGD", lr=0.02, momentum=0.9))
    cfg.custom_hooks[0].interval = count
    cfg.custom_hooks.append(dict(type="Steps"))
    apis.train(cfg, auto_scale_lr=True)
    last = torch.load(folder / f"iter_{6 * count}.pth", weights_only=False)
    return Steps.kept, Steps.rates, last["state_dict"]


def test_gradient_accumulation_equals_doubled_batch(tmp_path: Path, tree: Path):
    """Compares the scaled learning rate, the weights after each step, and the average, updated once per step."""
    whole, rates, _ = steps(tree, tmp_path / "whole", 1)
    parts, rates_of_parts, average = steps(tree, tmp_path / "parts", 2)
    assert set(rates) == set(rates_of_parts) == {0.02 * 8 / 16}
    assert len(parts) == 1 + 2 * (len(whole) - 1) == 13
    for one, other, between in zip(whole, parts[::2], parts[1::2], strict=False):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
            assert torch.equal(between[name], other[name])  # no update after the first of two batches
    assert any(not torch.equal(value, whole[-1][name]) for name, value in whole[0].items())
    # The average is updated at the first batch of each step, with the weights of the previous step.
    expected = {name: value.clone() for name, value in parts[0].items()}
    for state in parts[2:-1:2]:
        for name, value in expected.items():
            value.lerp_(state[name], 0.2)
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture
def built(monkeypatch) -> list[Config]:
    """Configs of the runners that would have been built; no runner is built and no data is checked."""
    found: list[Config] = []

    class Nothing:
        def train(self) -> None:
            pass

    monkeypatch.setattr(runs, "build_runner", lambda cfg: found.append(cfg) or Nothing())
    monkeypatch.setattr(runs, "_check_data", lambda *_: None)
    return found


@pytest.mark.parametrize("flag", [True, False])
def test_lr_scaling_includes_gradient_accumulation(tmp_path: Path, built: list[Config], flag: bool):
    """With the flag, and with a config that enables scaling."""
    name = f"gcvit-tiny_upernet_8xb2-160k_ade20k-512x512{'' if flag else '_1gpu'}.py"
    cfg = apis.load_config(
        ROOT / "configs/segmentation" / name, str(tmp_path), {"optim_wrapper.accumulative_counts": 4}
    )
    assert cfg.auto_scale_lr.get("enable", False) != flag
    whole = cfg.auto_scale_lr.base_batch_size
    apis.train(cfg, auto_scale_lr=flag)
    assert built[0].auto_scale_lr.enable
    assert built[0].auto_scale_lr.base_batch_size == whole / 4
    del cfg.auto_scale_lr["base_batch_size"]
    with pytest.raises(UsageError, match=r"the config has no auto_scale_lr.base_batch_size"):
        apis.train(cfg, auto_scale_lr=flag)


@pytest.mark.parametrize(
    ("given", "configured", "becomes"),
    [(None, "skip", "skip"), (None, None, None), ("stop", "skip", "stop"), ("skip", None, "skip")],
)
@pytest.mark.parametrize("loading", ["mmgcvit.LoadPillowImage", "mmgcvit.LoadCheckedImage", "LoadImageFromFile"])
def test_corrupt_option(
    tmp_path: Path,
    tree: Path,
    built: list[Config],
    loading: str,
    given: str | None,
    configured: str | None,
    becomes: str | None,
):
    """The config's setting applies unless the option is given. (None: the default of the class, 'stop'.)"""
    cfg = config(tree, tmp_path)
    transform = cfg.train_dataloader.dataset.pipeline[0]
    transform.update(type=loading, **({} if configured is None else dict(corrupt=configured)))
    apis.train(cfg, corrupt=given)
    found = built[0].train_dataloader.dataset.pipeline[0]
    assert found.get("corrupt") == becomes
    assert found.type == (loading if loading == "mmgcvit.LoadPillowImage" else "mmgcvit.LoadCheckedImage")


def test_files_of_an_earlier_run_are_named(tmp_path: Path, tree: Path, built: list[Config], monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(runs, "_warn", warned.extend)
    cfg = config(tree, tmp_path)
    apis.train(cfg)
    assert not any("earlier run" in line for line in warned)
    for name in ("iter_5.pth", "best_accuracy_iter_5.pth", "report.html", "notes.txt"):
        (tmp_path / name).touch()
    apis.train(cfg)
    (line,) = (line for line in warned if "earlier run" in line)
    assert "has files of an earlier run (best_accuracy_iter_5.pth, iter_5.pth, report.html), and this run adds" in line
    warned.clear()
    monkeypatch.setattr(runs, "checkpoint_to_resume", lambda folder: str(tmp_path / "iter_5.pth"))
    apis.train(cfg, resume=True)
    assert not any("earlier run" in line for line in warned)
    assert built[-1].resume


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_mixed_precision_on_gpu(tmp_path: Path, built: list[Config], kind: str, monkeypatch):
    monkeypatch.setattr(precision, "get_device", lambda: "cuda")
    cfg = apis.load_config(ROOT / "configs/classification/gcvit-tiny_32xb128_in1k.py", str(tmp_path))
    apis.train(cfg, amp=kind)
    found = built[0].optim_wrapper
    assert (found.type, found.dtype) == ("AmpOptimWrapper", "bfloat16" if kind == "bf16" else "float16")
    assert found.clip_grad == dict(max_norm=5.0, norm_type=2)
    cfg = apis.load_config(ROOT / "configs/classification/gcvit-tiny_32xb128_in1k_fsdp.py", str(tmp_path))
    apis.train(cfg, amp=kind)
    assert built[1].optim_wrapper.type == "mmgcvit.FSDPAmpOptimWrapper"
    monkeypatch.setattr(precision, "get_device", lambda: "cpu")
    apis.train(cfg)
    assert built[2].optim_wrapper.type == "mmgcvit.FSDPOptimWrapper"


def test_slurm_without_slurm(tmp_path: Path, tree: Path, monkeypatch):
    monkeypatch.setattr(launch, "get_device", lambda: "cpu")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(UsageError, match=r"launcher='slurm': SLURM_PROCID, .*start the processes with srun"):
        apis.train(config(tree, tmp_path, launcher="slurm"))


@pytest.mark.parametrize(
    "name", ["detection/mask-rcnn_gcvit-nano_fpn_digits.py", "segmentation/gcvit-nano_fpn_digits-160x160.py"]
)
def test_load_from_takes_a_bare_backbone(tmp_path: Path, name: str):
    """The weights of a backbone alone, in a run of a detector and of a segmentor."""
    pytest.importorskip("mmdet")
    cfg = apis.load_config(ROOT / "configs" / name, str(tmp_path))
    cfg.visualizer = None
    runner = launch.build_runner(cfg)
    bare = {key: torch.full_like(value, 0.5) for key, value in runner.model.backbone.state_dict().items()}
    torch.save(bare, tmp_path / "bare.pth")
    runner.load_checkpoint(str(tmp_path / "bare.pth"))
    for key, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, bare[key]), key


def test_load_from_says_what_it_left_out(tmp_path: Path, tree: Path, classifier):
    """A head of five classes in a model of three; the same file cannot be resumed."""
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / "five.pth")
    apis.train(config(tree, tmp_path / "run", workers=0, load_from=str(tmp_path / "five.pth")))
    (log,) = (tmp_path / "run").glob("*/*.log")
    (line,) = [line for line in log.read_text().splitlines() if "load_from" in line and "tensors loaded" in line]
    assert "five.pth': " in line
    assert "head.weight (5, 128), in the model (3, 128)" in line
    with pytest.raises(UsageError, match=r"five\.pth.* not the state of a run \(load_from takes it\)"):
        apis.train(config(tree, tmp_path / "resume", workers=0), resume=str(tmp_path / "five.pth"))
    (tmp_path / "half.pth").write_bytes((tmp_path / "five.pth").read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"half.pth' \(3,000 bytes\): truncated or damaged"):
        apis.train(config(tree, tmp_path / "half", workers=0, load_from=str(tmp_path / "half.pth")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"train_cfg.max_iter": 10}, r"config: train_cfg\.max_iter=10: .*max_iter"),
        ({"train_dataloader.batchsize": 2}, r"config: train_dataloader\.batchsize=2: .*batchsize"),
        (
            {"model.backbone.drop_path": 0.1},
            r"config: model\.backbone\.drop_path=0\.1: .*unknown argument.*drop_path_rate",
        ),
    ],
)
def test_settings_that_do_not_exist_are_named(tmp_path: Path, tree: Path, setting: dict, message: str):
    cfg = config(tree, tmp_path)
    cfg.merge_from_dict(setting)
    with pytest.raises(UsageError, match=message):
        apis.train(cfg)


def test_other_type_errors_keep_their_traceback(tmp_path: Path, tree: Path, monkeypatch):
    def wrong(*_args, **_kwargs):
        raise TypeError("forward() got an unexpected keyword argument 'mask'")

    cfg = config(tree, tmp_path)
    monkeypatch.setattr("mmengine.runner.Runner.train", wrong)
    with pytest.raises(TypeError, match="mask"):
        apis.train(cfg)


def test_the_checkpoint_of_an_earlier_run_is_no_way_on(tmp_path: Path, tree: Path):
    old = tmp_path / "work/iter_9.pth"
    old.parent.mkdir()
    torch.save({"meta": {}, "state_dict": {}}, old)
    os.utime(old, (1, 1))
    cfg = config(tree, old.parent)
    cfg.train_dataloader.dataset.split = "nowhere"
    with pytest.raises(UsageError, match="nowhere") as error:
        apis.train(cfg)
    assert "--resume" not in str(error.value)
