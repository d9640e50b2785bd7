"""The command-line tools: train, resume, test with images, predict on a folder, and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from classification_run import make_tree
from conftest import ROOT
from PIL import Image
from run_tool import run_tool

from mmgcvit import apis
from mmgcvit.apis import UsageError, load_config
from mmgcvit.tasks.detection.annotations import check_before_run

pytest.importorskip("mmcv._ext")
pytest.importorskip("sklearn")

CONFIG = str(ROOT / "configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py")
SHORT = ["--cfg-options", "train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.checkpoint.interval=2",
         "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
         "default_hooks.logger.interval=1"]  # fmt: skip


def run(tool: str, *arguments: str | Path, cwd: Path, ok: bool = True, process: bool = False) -> CompletedProcess:
    """Run a tool; with ``process``, in a process of its own, as at least one test of each tool does."""
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    if process:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    else:
        done = run_tool(tool, *arguments, cwd=cwd)
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder with digit scenes and a training run of four iterations."""
    from mmgcvit.datasets.digit_scenes import make_digit_scenes

    folder = tmp_path_factory.mktemp("user")
    make_digit_scenes(folder / "data/digit_scenes", images=40, size=128)
    done = run("train.py", CONFIG, "--work-dir", "work", *SHORT, cwd=folder, process=True)
    assert "coco/segm_mAP" in done.stdout
    return folder


def test_train(trained: Path):
    assert {p.name for p in (trained / "work").glob("*.pth")} == {"iter_2.pth", "iter_4.pth"}
    assert (trained / "work/last_checkpoint").is_file()
    page = (trained / "work/report.html").read_text()
    assert "train.py" in page
    assert "Confusion matrix" in page


def test_resume_from_newest_checkpoint(trained: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    longer = [o.replace("max_iters=4", "max_iters=6").replace("val_interval=4", "val_interval=6") for o in SHORT]
    done = run("train.py", CONFIG, "--work-dir", "work", "--no-report", "--resume", *longer, cwd=tmp_path, ok=False)
    assert (
        "train: param_scheduler[0] (CosineAnnealingLR): T_max=6 (checkpoint: 4), end=6 (checkpoint: 4);" in done.stderr
    )
    longer += ["param_scheduler.1.end=4"]  # the schedule of the checkpoint
    done = run("train.py", CONFIG, "--work-dir", "work", "--no-report", "--resume", *longer, cwd=tmp_path)
    assert "resumed epoch: 0, iter: 4" in done.stdout
    assert "iter 5/6  loss" in done.stdout
    assert "iter 4/6  loss" not in done.stdout
    assert (tmp_path / "work/iter_6.pth").is_file()


def test_resume_from_a_named_checkpoint(trained: Path):
    done = run(
        "train.py", CONFIG, "--work-dir", "named", "--no-report", "--resume", "work/iter_2.pth", *SHORT, cwd=trained
    )
    assert "iter 3/4  loss" in done.stdout
    assert "iter 2/4  loss" not in done.stdout


def test_test_draws_ground_truth_next_to_prediction(trained: Path):
    arguments = (CONFIG, "work/iter_4.pth", "--work-dir", "tested", "--show-dir", "images")
    done = run("test.py", *arguments, cwd=trained, process=True)
    assert "coco/bbox_mAP_50" in done.stdout
    images = sorted((trained / "images").iterdir())
    assert len(images) == 2
    assert Image.open(images[0]).size == (2 * 512 + 8, 512)  # two images of 128 x 128 side by side, enlarged


def test_image_demo_on_a_folder(trained: Path):
    scenes = trained / "data/digit_scenes/images/val"
    shutil.copy(scenes / "000000.jpg", trained / "another.jpg")
    done = run(
        "image_demo.py",
        scenes,
        "another.jpg",
        CONFIG,
        "work/iter_4.pth",
        "--out-dir",
        "found",
        "--batch-size",
        "2",
        cwd=trained,
        process=True,
    )
    assert "3 images, " in done.stdout
    assert "predictions in found/predictions.json, drawings in found/vis" in done.stdout
    assert sorted(p.name for p in (trained / "found/vis").iterdir()) == ["000000.jpg", "000001.jpg", "another.jpg"]
    found = json.loads((trained / "found/predictions.json").read_text())
    images = json.loads((trained / "found/images.json").read_text())
    assert [image["file_name"] for image in images["images"]] == ["000000.jpg", "000001.jpg", "another.jpg"]
    assert {result["image_id"] for result in found} <= {1, 2, 3}


@pytest.mark.slow
def test_test_with_tta(trained: Path):
    done = run("test.py", CONFIG, "work/iter_4.pth", "--work-dir", "tta", "--tta", cwd=trained)
    assert "coco/bbox_mAP" in done.stdout
    assert "segm_mAP" not in done.stdout


def test_corrupt_image_stops_or_is_skipped(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "data", tmp_path / "data")
    broken = tmp_path / "data/digit_scenes/images/train/000003.jpg"
    broken.write_bytes(broken.read_bytes()[:1000])
    short = [o.replace("max_iters=4", "max_iters=10").replace("val_interval=4", "val_interval=20") for o in SHORT]
    done = run("train.py", CONFIG, "--work-dir", "stop", *short, cwd=tmp_path, ok=False)
    assert "train: image data/digit_scenes/images/train/000003.jpg: cannot be decoded" in done.stderr
    done = run("train.py", CONFIG, "--work-dir", "skip", "--corrupt", "skip", *short, cwd=tmp_path)
    assert "skipped image data/digit_scenes/images/train/000003.jpg: cannot be decoded" in done.stdout + done.stderr
    assert "images skipped so far because they cannot be decoded: 1" in done.stdout + done.stderr


def test_non_finite_loss_stops_the_run(trained: Path):
    done = run(
        "train.py",
        CONFIG,
        "--work-dir",
        "nan",
        *SHORT,
        "optim_wrapper.optimizer.lr=1e30",
        "optim_wrapper.clip_grad=None",
        "param_scheduler=[]",
        cwd=trained,
        ok=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"train: iteration [2-4]: the loss is not finite: .*loss=nan", last)
    assert "Last good checkpoint: " in last


@pytest.mark.slow
def test_auto_scale_lr(trained: Path):
    run(
        "train.py",
        CONFIG,
        "--work-dir",
        "scaled",
        "--auto-scale-lr",
        *SHORT,
        "train_dataloader.batch_size=2",
        cwd=trained,
    )
    state = torch.load(trained / "scaled/iter_2.pth", weights_only=False)
    assert {group["initial_lr"] for group in state["optimizer"]["param_groups"]} == {
        0.0015
    }  # 0.003 is the rate for 4 images


def test_two_images_with_the_same_name_are_rejected(trained: Path):
    scene = trained / "data/digit_scenes/images/val/000000.jpg"
    done = run("image_demo.py", scene, scene, CONFIG, "work/iter_4.pth", "--out-dir", "twice", cwd=trained, ok=False)
    assert "would be written to the same file, 000000.jpg" in done.stderr
    assert not (trained / "twice").exists()


@pytest.mark.parametrize("classes", [("one", "two"), tuple("0123456798"), tuple("012345678x")])
def test_classes_missing_in_annotation_file_are_rejected(trained: Path, tmp_path: Path, classes: tuple[str, ...]):
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = {CONFIG!r}\ntrain_dataloader = dict(dataset=dict(metainfo=dict(classes={classes})))\n")
    done = run("train.py", config, "--work-dir", "never", cwd=trained, ok=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "train: data/digit_scenes/annotations/instances_train.json: "
        f"classes={classes!r}; allowed, as data/digit_scenes/annotations/"
    )
    assert last.endswith("'8', '9', all or some, in this order")
    subset = load_config(CONFIG, cfg_options={"train_dataloader.dataset.metainfo.classes": ("1", "7")}).train_dataloader
    subset.dataset.data_root = str(trained / subset.dataset.data_root)
    check_before_run(subset)


def test_bug_in_a_run_keeps_its_traceback(trained: Path, tmp_path: Path):
    (tmp_path / "broken.py").write_text(f"_base_ = {CONFIG!r}\nmodel = dict(backbone=dict(arch='huge'))\n")
    done = run("train.py", tmp_path / "broken.py", "--work-dir", "never", cwd=trained, ok=False)
    assert "Traceback" in done.stderr
    assert "arch='huge' is unknown" in done.stderr


def test_show_dir_needs_a_hook_that_draws(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained)
    cfg = load_config(CONFIG, cfg_options={"default_hooks.visualization.type": "Mine"})
    with pytest.raises(UsageError, match=r"of the config is 'Mine'; allowed: 'DetVisualizationHook', 'SegVis"):
        apis.test(cfg, CONFIG, show_dir="images")


def test_segmentor(trained: Path):
    pytest.importorskip("mmseg")
    config = str(ROOT / "configs/segmentation/gcvit-nano_fpn_digits-160x160.py")
    done = run("train.py", config, "--work-dir", "seg", *SHORT, cwd=trained)
    assert re.search(r"mIoU:? +\d", done.stdout)
    done = run("test.py", config, "seg/iter_4.pth", "--work-dir", "tested", "--show-dir", "maps", "--tta", cwd=trained)
    assert re.search(r"mIoU:? +\d", done.stdout)
    images = sorted((trained / "maps").iterdir())
    assert [path.name[:15] for path in images] == ["test_000000.jpg", "test_000001.jpg"]
    width, height = Image.open(images[0]).size
    assert (width, height > 512) == (2 * 512 + 8, True)  # two images of 128 x 128, enlarged, with their legends
    done = run(
        "image_demo.py", "data/digit_scenes/images/val", config, "seg/iter_4.pth", "--batch-size", "2", cwd=trained
    )
    assert done.stdout.strip().endswith("2 images: predictions in outputs/areas.json, drawings in outputs/vis")
    assert Image.open(trained / "outputs/labels/000001.png").size == (128, 128)


@pytest.mark.parametrize(
    ("line", "values"),
    [("reduce_zero_label = True", (1, 2, 0)), pytest.param("flips = []", (0, 1, 255), marks=pytest.mark.slow)],
)
def test_segmentation_template(tmp_path: Path, line: str, values: tuple[int, int, int]):
    """With handmade label maps: ground, a square, and ignored pixels."""
    pytest.importorskip("mmseg")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels = rng.integers(0, 90, (48, 64, 3), np.uint8), np.full((48, 64), values[0], np.uint8)
            top, left = rng.integers(4, 20, 2)
            image[top : top + 20, left : left + 20] += 150
            labels[top : top + 20, left : left + 20], labels[:3] = values[1], values[2]
            Image.fromarray(image).save(tmp_path / f"images/{split}/{i}.jpg")
            Image.fromarray(labels).save(tmp_path / f"annotations/{split}/{i}.png")
    template = ROOT / "configs/segmentation/custom_template.py"
    text = template.read_text().replace("'./_base_", f"'{template.parent}/_base_")
    for old, new in (
        ("data/my_data/", "."),
        ("('background', 'cat', 'dog')", "('ground', 'square')"),
        ("short = 192", "short = 48"),
        ("crop_size = (192, 256)", "crop_size = (32, 64)"),
        (re.search(rf"^{line.split(' = ')[0]} = .*$", text, re.MULTILINE)[0], line),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "mine.py").write_text(text)
    done = run("train.py", "mine.py", "--work-dir", "work", *SHORT, cwd=tmp_path)
    assert re.search(r"mIoU:? +\d", done.stdout)
    done = run("test.py", "mine.py", "work/iter_4.pth", "--work-dir", "tested", "--tta", cwd=tmp_path)
    assert re.search(r"mIoU:? +\d", done.stdout)
    for tta in (False, True):
        apis.predict(
            str(tmp_path / "mine.py"),
            str(tmp_path / "work/iter_4.pth"),
            [tmp_path / "images/val"],
            str(tmp_path / "found"),
            "cpu",
            tta=tta,
        )
        areas = json.loads((tmp_path / "found/areas.json").read_text())
        assert areas["values"] == {"0": "ground", "1": "square"}
        assert [sum(area["pixels"] for area in image["areas"].values()) for image in areas["images"]] == [48 * 64] * 4


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Folder with images of three classes and a config based on the template."""
    folder = tmp_path_factory.mktemp("classifier")
    make_tree(folder / "colours", train=9, val=3)
    template = ROOT / "configs/classification/custom_template.py"
    text = template.read_text().replace("'./_base_", f"'{template.parent}/_base_")
    for old, new in (
        ("data/my_data/", "colours"),
        ("('cat', 'dog')", "('blue', 'green', 'red')"),
        ("size = 128", "size = 32"),
        ("batch_size = 16", "batch_size = 4"),
        ("max_epochs = 60", "max_epochs = 3"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return folder


def test_classifier(colours: Path):
    done = run("train.py", "mine.py", "--work-dir", "work", cwd=colours)
    assert re.search(r"accuracy/top1: \d", done.stdout)
    done = run("test.py", "mine.py", "work/epoch_3.pth", "--work-dir", "tested", "--out", "new/table.csv", cwd=colours)
    assert re.search(r"throughput, loading included: [\d.]+ images/s \(5 in", done.stdout)
    rows = (colours / "new/table.csv").read_text().splitlines()
    assert rows[0] == "image,class,class_1,probability_1,class_2,probability_2,class_3,probability_3"
    assert [row.split(",")[:2] for row in rows[1:]] == [
        [f"{name}/{i}.png", name] for name in ("blue", "green", "red") for i in range(3)
    ]
    done = run("test.py", "mine.py", "work/epoch_3.pth", "--show-dir", "x", cwd=colours, ok=False)
    assert done.stderr.strip().splitlines()[-1].startswith("test: --show-dir: default_hooks.visualization")


@pytest.mark.slow
def test_two_processes_train_a_classifier(colours: Path):
    """With uneven shares: 9 images in batches of 2 for 2 processes; each image counts once."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": "29519",
        "OMP_NUM_THREADS": "1",
    }
    for command in (
        ["dist_train.sh", "mine.py", "2", "--work-dir", "two"],
        [
            "dist_test.sh",
            "mine.py",
            "two/epoch_3.pth",
            "2",
            "--work-dir",
            "two",
            "--out",
            "two.csv",
            "--cfg-options",
            "test_dataloader.batch_size=2",
        ],
    ):
        done = subprocess.run(
            [str(ROOT / "tools" / command[0]), *command[1:]], cwd=colours, capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr[-3000:]
    two = float(re.findall(r"accuracy/top1 +([\d.]+)", done.stdout)[-1])
    done = run("test.py", "mine.py", "two/epoch_3.pth", "--work-dir", "one", "--out", "one.csv", cwd=colours)
    assert float(re.findall(r"accuracy/top1 +([\d.]+)", done.stdout)[-1]) == two
    tables = [(colours / name).read_text().splitlines() for name in ("one.csv", "two.csv")]
    assert len(tables[0]) == 10
    for one, other in zip(*tables, strict=True):
        assert one.split(",")[:3] == other.split(",")[:3]


SRUN = """#!/usr/bin/env bash
echo "srun $*" >>srun.log
while [ "$1" != python ]; do shift; done
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 SLURM_NODELIST='node[1-2]' "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = 'show hostname node[1-2]' ] || exit 1
echo 127.0.0.1
echo elsewhere
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs the processes join through mmengine and NCCL")
def test_slurm(colours: Path, tmp_path: Path):
    """With stand-ins for srun, which starts two processes, and scontrol, which lists the nodes."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GPUS": "2",
        "MASTER_PORT": "29523",
        "OMP_NUM_THREADS": "1",
    }
    env.pop("MASTER_ADDR", None)
    for command in (
        ["slurm_train.sh", "part", "name", "mine.py", "slurm"],
        ["slurm_test.sh", "part", "name", "mine.py", "slurm/epoch_3.pth", "--work-dir", "slurm", "--out", "slurm.csv"],
    ):
        done = subprocess.run(
            [str(ROOT / "tools" / command[0]), *command[1:]], cwd=colours, capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert "-p part --job-name=name --gres=gpu:2 --ntasks=2 --ntasks-per-node=2" in (colours / "srun.log").read_text()
    state = torch.load(colours / "slurm/epoch_3.pth", weights_only=False)
    assert state["message_hub"]["runtime_info"]["epoch_length"] == 3  # 27 images, 2 processes, batches of 4
    assert len((colours / "slurm.csv").read_text().splitlines()) == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="here mixed precision works")
def test_amp_without_gpu_is_an_error(trained: Path):
    done = run("train.py", CONFIG, "--work-dir", "amp", "--amp", *SHORT, cwd=trained, ok=False)
    assert done.stderr.strip().splitlines()[-1].startswith("train: --amp fp16 needs a GPU")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "gcvit-nano_fpn_digits-160x160",
        "gcvit-xxtiny_upernet_8xb2-160k_ade20k-512x512",
        "gcvit-tiny_mask2former_8xb2-160k_ade20k-512x512",
    ],
)
def test_mmseg_tools_accept_our_configs(trained: Path, name: str):
    """ADE20K configs on digit scenes with crops of 64 x 64; label 0 is ignored, and 10 of 150 classes remain."""
    mmseg = pytest.importorskip("mmseg")
    tools = Path(mmseg.__file__).parent / ".mim/tools"
    config = str(ROOT / f"configs/segmentation/{name}.py")
    smaller = (
        # Only our own tools shorten a warm-up that is longer than the run.
        ["param_scheduler.0.end=2", "param_scheduler.1.begin=2"]
        if "digits" in name
        else [
            "model.backbone.init_cfg=None",
            "model.backbone.pad=window",
            "model.data_preprocessor.size=(64,64)",
            *(f"model.{head}.norm_cfg.type=BN" for head in ("decode_head", "auxiliary_head") if "upernet" in name),
            "train_dataloader.dataset.pipeline.2.scale=(256,64)",
            "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
            *(
                f"{loader}_dataloader.dataset.{key}"
                for loader, split in (("train", "train"), ("val", "val"), ("test", "val"))
                for key in (
                    "data_root=data/digit_scenes",
                    f"data_prefix.img_path=images/{split}",
                    f"data_prefix.seg_map_path=semantic/{split}",
                )
            ),
            *(f"{loader}_dataloader.dataset.pipeline.1.scale=(256,64)" for loader in ("val", "test")),
        ]
    )
    tta = ["--tta"] if "digits" in name else []
    for command in (["train.py", config], ["test.py", config, f"{name}/iter_4.pth", *tta]):
        command += ["--work-dir", name, *SHORT, *smaller]
        done = subprocess.run(
            [sys.executable, str(tools / command[0]), *command[1:]], cwd=trained, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert re.search(r"mIoU:? +\d", done.stdout)


@pytest.mark.slow
def test_two_processes_train(trained: Path):
    # The tools call `python`: make it this interpreter.
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": "29517",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(ROOT / "tools/dist_train.sh"), CONFIG, "2", "--work-dir", "two", *SHORT],
        cwd=trained,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (trained / "two/iter_4.pth").is_file()
    assert done.stdout.count("mmgcvit predict IMAGES") == 1  # by the first process only
    done = subprocess.run(
        [str(ROOT / "tools/dist_test.sh"), CONFIG, "two/iter_4.pth", "2", "--work-dir", "two"],
        cwd=trained,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "coco/bbox_mAP" in done.stdout


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("train.py", ["nothing.py"], "train: config 'nothing.py': no such file"),
        ("train.py", ["mmgcvit::detection/nothing.py"], "no such file"),
        (
            "train.py",
            [CONFIG, "--resume", "no.pth"],
            "train: checkpoint to resume from 'no.pth': no such file",
        ),
        ("test.py", [CONFIG, "no.pth"], "test: checkpoint 'no.pth': no such file"),
        ("image_demo.py", ["no.jpg", CONFIG, CONFIG], "image_demo: input 'no.jpg': no such image, video"),
        ("image_demo.py", [".", CONFIG, CONFIG], "image_demo: input '.': no images in this folder"),
        ("image_demo.py", [".", CONFIG, "no.pth"], "image_demo: checkpoint 'no.pth': no such file"),
    ],
)
def test_errors_name_missing_files(tmp_path: Path, tool: str, arguments: list[str], message: str):
    done = run(tool, *arguments, cwd=tmp_path, ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_packaged_config_by_name():
    cfg = load_config("mmgcvit::detection/mask-rcnn_gcvit-tiny_fpn_1x_coco.py", launcher="none")
    assert cfg.work_dir == "work_dirs/mask-rcnn_gcvit-tiny_fpn_1x_coco"
    with pytest.raises(UsageError, match="launcher='ssh'; allowed: none, pytorch"):
        load_config(CONFIG, launcher="ssh")


def test_scripts_print_usage():
    for script in ("dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh", "install.sh"):
        done = subprocess.run([str(ROOT / "tools" / script)], capture_output=True, text=True)
        assert done.returncode != 0
        assert "usage:" in done.stderr
