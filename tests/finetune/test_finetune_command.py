"""``mmgcvit finetune`` and ``mmgcvit data``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import own_data_sets as sets
import pytest
from mmengine.config import Config

from mmgcvit.__main__ import main
from mmgcvit.apis.lock import lock_work_dir
from mmgcvit.checkpoint import weights as published
from mmgcvit.checkpoint.reader import is_trusting
from mmgcvit.errors import CheckpointError, UsageError
from mmgcvit.finetune import batch, command
from mmgcvit.finetune.batch import fits, largest_batch
from mmgcvit.finetune.config import Settings, base_config, learning_rate, load_text, make_config
from mmgcvit.finetune.data import split_off
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.write import convert
from mmgcvit.utils.images import VARIABLE, max_pixels

#: Function that writes a data set with its arguments, task, and the metric of the best checkpoint.
TASKS = {
    "detect": (sets.coco_roboflow, {}, "coco/bbox_mAP"), "segment": (sets.cvat, dict(masks=True), "coco/bbox_mAP"),
    "semantic": (sets.label_maps, {}, "mIoU"), "classify": (sets.class_folders, {}, "accuracy/top1"),
}  # fmt: skip
FORMATS = [sets.coco_one_file, sets.yolo, sets.voc, sets.labelme, sets.cvat, sets.label_studio, sets.label_maps,
           sets.class_folders]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_a_dry_run_shows_the_config_and_writes_nothing(write, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    assert main(["finetune", "data", "--arch", "nano", "--epochs", "3", "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    assert "recognised: " in shown
    assert "dry run: nothing was written" in shown
    assert all(name in shown for name in sets.NAMES)
    assert "3 epochs of" in shown
    assert "learning rate 0.00" in shown


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arch", ["nano", "tiny", "small"])
def test_configs_of_all_tasks_and_archs(task, arch, tmp_path):
    write, arguments, best = TASKS[task]
    write(tmp_path / "da{{ta", **arguments)
    data = read_data(tmp_path / "da{{ta", task)
    split_off(data)
    weights = "none" if arch == "nano" else f"gcvit://{arch}_in1k"
    settings = Settings(task, arch, weights, epochs=4, batch=2, size=96)
    text = make_config(data, tmp_path / "{{out", settings)
    cfg = load_text(text)
    train = cfg.train_dataloader.dataset
    assert tuple(train.get("classes") or train.metainfo.classes) == tuple(data.classes)
    assert str(tmp_path / "{{out") in train.data_root
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.enable is True
    assert cfg.default_hooks.checkpoint.save_best == best
    hooks = {hook.type.rpartition(".")[2] for hook in cfg.custom_hooks}
    assert {"EarlyStoppingHook", "EMAHook"} <= hooks
    given = cfg.model.init_cfg if task == "classify" and arch != "nano" else cfg.model.backbone.get("init_cfg")
    assert (given and given.checkpoint) == (None if arch == "nano" else weights)
    assert cfg.model.backbone.arch == arch if arch != "nano" else isinstance(cfg.model.backbone.arch, dict)
    if arch == "small" and task == "detect":
        assert cfg.model.neck.in_channels == [96, 192, 384, 768]
    if task != "classify":
        assert cfg.train_cfg.max_iters == 4 * 2  # 3 images with objects, or 4 label maps
    base = Config.fromfile(str(base_config(task, arch)))
    rate = base.optim_wrapper.optimizer.lr
    per = base.auto_scale_lr.base_batch_size if (task, arch) != ("classify", "nano") else 2
    assert learning_rate(cfg) == (pytest.approx(rate * 2 / per), rate, per)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_training_in_one_command(task, tmp_path, capsys):
    write, arguments, best = TASKS[task]
    write(tmp_path / "data", **arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    work = tmp_path / "run"
    argv = ["finetune", str(tmp_path / "data"), "--task", task, "--arch", "nano", "--weights", "none", "--epochs", "1"]
    assert main([*argv, "--size", "64", "--batch", "2", "--work-dir", str(work)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("evaluating the best checkpoint on the validation images") < shown.index("results on ")
    assert shown.count(f"  {best} ") == 1  # the results are shown once
    assert "mmgcvit export" in shown
    checkpoint = next(work.glob("best_*.pth"))
    assert str(checkpoint) in shown
    assert (work / "report.html").stat().st_size > 10_000
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == before
    with pytest.raises(UsageError, match=r"exists and has best_.*; allowed: a new folder .* --resume goes on"):
        command.finetune(tmp_path / "data", command.Options(task, arch="nano", work_dir=str(work)))


def test_the_checks_of_the_data_stop_the_run(tmp_path, capsys):
    content = sets.coco_content(range(6), False)
    content["images"][0]["width"] += 1
    sets.write_images(tmp_path / "data")
    sets.write_json(tmp_path / "data" / "a.json", content)
    argv = ["finetune", str(tmp_path / "data"), "--arch", "nano", "--epochs", "1", "--work-dir", str(tmp_path / "run")]
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert "is 97 x 64 (width x height), but 98 x 64 in the annotations" in shown.out
    assert "the data would break the training" in shown.err
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_second_try_in_the_same_folder(tmp_path, capsys, monkeypatch):
    """The first one has trained nothing, as a size was wrong; an edited config is kept, and other files are, too."""
    content = sets.coco_content(range(6), False)
    sets.write_images(tmp_path / "data")
    content["images"][0]["width"] += 1
    sets.write_json(tmp_path / "data" / "a.json", content)
    work = tmp_path / "run"
    argv = ["finetune", str(tmp_path / "data"), "--arch", "nano", "--weights", "none", "--work-dir", str(work)]
    trained = []
    monkeypatch.setattr(command, "run_training", lambda *args, **options: trained.append((args, options)))
    monkeypatch.setattr(command, "check_data", lambda cfg, progress: [broken])
    broken = SimpleNamespace(broken=True)
    monkeypatch.setattr(command, "print_reports", lambda reports: None)
    assert main([*argv, "--epochs", "1"]) == 1
    assert (work / "finetune/config.py").is_file()
    broken.broken = False
    content["images"][0]["width"] -= 1
    sets.write_json(tmp_path / "data" / "a.json", content)
    (work / "20261128_220000").mkdir()  # of mmengine, when a training fails at once
    assert main([*argv, "--epochs", "2"]) == 0
    assert "is written again: an earlier try has trained nothing" in capsys.readouterr().out
    (((cfg, path, *_), _),) = trained
    assert cfg.train_cfg.max_iters == 2 * 2
    path.write_text(path.read_text() + "# mine\n")
    assert main(argv) == 1
    assert "config.py' was edited, and a new run would replace it" in capsys.readouterr().err
    assert path.read_text().endswith("# mine\n")
    (work / "mine.txt").touch()
    assert main(argv) == 1
    assert "exists and has mine.txt; allowed: a new folder" in capsys.readouterr().err
    with lock_work_dir(tmp_path / "locked"):
        assert main([*argv[:-1], str(tmp_path / "locked")]) == 1
    assert "has another run in it" in capsys.readouterr().err


def test_a_stopped_run_is_resumed(tmp_path, capsys, monkeypatch):
    sets.coco_one_file(tmp_path / "data")
    work = tmp_path / "run"
    argv = ["finetune", str(tmp_path / "data"), "--arch", "nano", "--epochs", "1", "--work-dir", str(work)]
    trained = []
    monkeypatch.setattr(command.apis, "train", lambda cfg, resume: trained.append((cfg, resume)) or 1 / 0)
    monkeypatch.setattr(command, "check_data", lambda cfg, progress: [])
    with pytest.raises(ZeroDivisionError):
        main(argv)
    (work / "iter_1.pth").touch()
    assert main(argv) == 1
    assert "exists and has iter_1.pth; allowed: a new folder (--work-dir), or remove it. --resume goes on" in (
        capsys.readouterr().err
    )
    for again in (argv, [*argv[:2], "--work-dir", str(work)]):
        with pytest.raises(ZeroDivisionError):
            main([*again, "--resume"])
        cfg, resumed = trained[-1]
        assert resumed is True
        assert cfg.work_dir == str(work)
    assert main([*argv[:2], "--epochs", "7", "--resume", "--work-dir", str(work)]) == 1
    assert "--resume with epochs=7: the run in" in capsys.readouterr().err
    assert main([*argv, "--resume", "--dry-run"]) == 1
    assert main([*argv[:-1], str(tmp_path / "other"), "--resume"]) == 1
    assert "--resume: '" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_max_pixels_and_trust_reach_the_run(tmp_path, capsys, monkeypatch):
    sets.cvat(tmp_path / "data")
    monkeypatch.setenv(VARIABLE, "1000")
    found = []
    monkeypatch.setattr(command, "finetune", lambda source, options: found.append((max_pixels(), is_trusting())))
    assert main(["finetune", "data", "--max-pixels", "77", "--trust-checkpoint"]) == 0
    assert main(["finetune", "data"]) == 0
    assert found == [(77, True), (77, False)]
    assert main(["data", "show", str(tmp_path / "data"), "--max-pixels", "0"]) == 1
    assert "max_pixels=0; allowed: at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_errors_that_mean_too_little_memory(message, expected, tmp_path, monkeypatch):
    def step(*args):
        raise RuntimeError(message)

    monkeypatch.setattr(batch.MODELS, "build", step)
    sets.coco_one_file(tmp_path / "data")
    data = read_data(tmp_path / "data")
    split_off(data)
    cfg = load_text(make_config(data, convert(data, tmp_path / "out"), Settings("detect", "nano", "none", 1, 1, 64)))
    if expected:
        assert not fits(cfg, 2, "cpu")
        with pytest.raises(UsageError, match="not even a batch of 1"):
            largest_batch(lambda size: fits(cfg, size, "cpu"), 4)
    else:
        with pytest.raises(RuntimeError, match="must match"):
            fits(cfg, 2, "cpu")


def test_weights_that_cannot_be_fetched(tmp_path, capsys, monkeypatch):
    def fail(name):
        raise CheckpointError(f"{name}: the server does not respond")

    monkeypatch.setattr(command, "fetch", fail)
    sets.coco_one_file(tmp_path / "data")
    assert main(["finetune", str(tmp_path / "data"), "--work-dir", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().err
    assert "weights 'gcvit://tiny_in1k' cannot be fetched" in shown
    assert "--weights none" in shown
    assert "--weights FILE" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (dict(arch="huge"), "arch='huge'; allowed: nano, xxtiny"),
        (dict(weights="missing.pth"), "weights='missing.pth': no such file; allowed: none, a file, or gcvit://"),
        (dict(arch="small", weights="gcvit://tiny_in1k"), "are for arch='tiny', not 'small'"),
        (dict(epochs=0), "epochs=0; allowed: at least 1"),
        (dict(size=8), "size=8; allowed: at least 32"),
        (dict(batch=-1), "batch=-1; allowed: at least 1"),
    ],
)
def test_options_that_are_not_allowed(options, wanted, tmp_path):
    sets.coco_one_file(tmp_path)
    with pytest.raises(UsageError) as error:
        command.finetune(tmp_path, command.Options(dry_run=True, **options))
    assert wanted in str(error.value)
    assert published.WEIGHTS  # the names in the message


def test_data_show_and_convert(tmp_path, capsys):
    sets.label_studio(tmp_path / "data", masks=True)
    assert main(["data", "show", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert "recognised: Label Studio JSON" in shown
    assert "6 images, 8 objects, 4 classes" in shown
    assert "task: segment (masks of objects), which the annotations contain; for another: --task detect" in shown
    assert "note: 1 task is not annotated, or skipped: left out" in shown
    assert main(["data", "convert", str(tmp_path / "data"), str(tmp_path / "out"), "--task", "detect"]) == 0
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert not any("segmentation" in annotation for annotation in content["annotations"])
    assert main(["data", "convert", str(tmp_path / "data"), str(tmp_path / "out")]) == 1
    assert "exists; allowed: a new folder" in capsys.readouterr().err


def test_the_largest_batch_that_fits():
    tried = []

    def trial(batch):
        tried.append(batch)
        return batch <= 11

    assert largest_batch(trial, 64) == 8
    assert tried == [1, 2, 4, 8, 16]
    assert largest_batch(trial, 6) == 6
    with pytest.raises(UsageError, match="not even a batch of 1 fits"):
        largest_batch(lambda batch: False, 8)


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_the_steps_of_a_trial_run(task, tmp_path):
    write, arguments, _ = TASKS[task]
    write(tmp_path / "data", **arguments)
    data = read_data(tmp_path / "data", task)
    folder = convert(data, tmp_path / "out")
    settings = Settings(task, "nano", "none", epochs=1, batch=1, size=64)
    assert fits(load_text(make_config(data, folder, settings)), 2, "cpu")


def test_the_config_gets_the_batch_that_fits_on_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "fits", lambda cfg, batch: batch <= 2)
    monkeypatch.setattr(command, "check_data", lambda cfg, progress: [])
    trained = []
    monkeypatch.setattr(command, "run_training", lambda cfg, path, work_dir, say: trained.append((cfg, path)))
    sets.coco_one_file(tmp_path / "data")
    command.finetune(tmp_path / "data", command.Options(arch="nano", work_dir=str(tmp_path / "run")))
    ((cfg, path),) = trained
    assert "batch size 2: the largest that fits into the GPU, at most 2" in capsys.readouterr().out
    assert cfg.train_dataloader.batch_size == 2
    assert path.read_text(encoding="utf-8").count("batch_size = 2") == 1


def test_a_data_set_is_converted_whole_or_not_at_all(tmp_path):
    sets.class_folders(tmp_path / "data")
    data = read_data(tmp_path / "data")
    split_off(data)
    (tmp_path / "out").mkdir()
    convert(data, tmp_path / "out")  # an empty folder is new
    with pytest.raises(UsageError, match="exists; allowed: a new folder"):
        convert(data, tmp_path / "out")
