"""What the page does, without the page: models from checkpoints and exported files, tables, files, limits."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mmgcvit.app import actions
from mmgcvit.app.commands import find_examples, load
from mmgcvit.errors import UsageError
from mmgcvit.utils import inputs


def photo(path: Path, height: int, width: int) -> Path:
    """Write an image with a bright box at x 20 to 60, y 10 to 40."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[10:40, 20:60] = 200
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, str]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_models import write_model

    folder = tmp_path_factory.mktemp("exported")
    tasks = ("detection", "segmentation", "classification")
    return {task: str(write_model(folder / f"{task}.onnx", task)) for task in tasks}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A model per task, built once."""
    pytest.importorskip("mmcv._ext")
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    from digit_models import CONFIGS, config, write_checkpoint

    from mmgcvit.app.checkpoint import CheckpointModel

    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        task: CheckpointModel(config(task), str(write_checkpoint(task, folder / f"{task}.pth")), "cpu", 64)
        for task in CONFIGS
    }


def test_detections_of_an_exported_file(exported: dict[str, str], tmp_path: Path):
    """The table, the line and the drawing follow the threshold, the files do not."""
    model = load(exported["detection"], None)
    result = actions.predict(model, photo(tmp_path / "a b.png", 97, 211))
    assert actions.table(result, 0.7)[1] == [["dog", "0.78", "20, 10, 40, 30"]]
    assert actions.table(result, 0.8)[1] == []
    assert actions.summary(result, 0.7).startswith("1 of 1 object with a score of at least 0.70; 211 x 97 pixels")
    assert actions.summary(result, 0.8).startswith("0 of 1 object")
    with_box, without = (np.asarray(actions.drawing(model, result, score)).astype(int) for score in (0.7, 0.8))
    assert with_box.shape == without.shape == (2 * 97, 2 * 211, 3)
    assert (with_box[2 * 10, 2 * 40] == model.palette[1]).all()
    assert (without[2 * 10, 2 * 40] == 200).all()
    written = {Path(path).name: json.loads(Path(path).read_text())
               for path in actions.write_results(model, result, tmp_path)}  # fmt: skip
    (found,) = written["predictions.json"]
    assert found["bbox"] == [20, 10, 40, 30]
    assert found["category_id"] == 2
    assert written["images.json"]["images"] == [dict(id=1, file_name="a b.png", width=211, height=97)]


def test_other_tasks_of_exported_files(exported: dict[str, str], tmp_path: Path):
    path = photo(tmp_path / "a.png", 97, 211)
    model = load(exported["segmentation"], None)
    result = actions.predict(model, path)
    share = 100 * 1200 / (97 * 211)
    assert actions.table(result, 0.3) == (
        ["class", "share (%)", "pixels"],
        [["cat", f"{100 - share:.1f}", str(97 * 211 - 1200)], ["dog", f"{share:.1f}", "1200"]],
    )
    names = [Path(path).name for path in actions.write_results(model, result, tmp_path)]
    assert names == ["areas.json", "a.png"]
    model = load(exported["classification"], None)
    result = actions.predict(model, path)
    header, rows = actions.table(result, 0.3)
    assert header == ["class", "probability"]
    assert [name for name, _ in rows] == [name for name, _ in result.prediction.top()]
    assert [Path(path).name for path in actions.write_results(model, result, tmp_path)] == [
        "classes.csv",
        "classes.json",
    ]
    assert model.tile is None  # no tiles for classifiers
    assert not model.methods
    with pytest.raises(UsageError, match="cannot be explained"):
        actions.explain(model, result, 5, 5, "local")


def test_tiles_of_an_exported_file(exported: dict[str, str], tmp_path: Path):
    """The bright box lies in several tiles; whole images are still predicted as such."""
    model = load(exported["detection"], None, tile=32)
    path = photo(tmp_path / "a.png", 97, 211)
    assert len(actions.predict(model, path, tiles=True).prediction) > 1
    assert len(actions.predict(model, path).prediction) == 1


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_checkpoints(checkpoints, tmp_path: Path, task: str):
    """Predictions and files are those of image_demo; tiles and test-time augmentation share the weights."""
    from digit_models import config

    from mmgcvit.apis import predict

    model, path = checkpoints[task], photo(tmp_path / "a.png", 97, 211)
    result = actions.predict(model, path)
    checkpoint = model.checkpoint
    predict(config(task), checkpoint, [path], str(tmp_path / "demo"), "cpu", draw=False)
    for written in map(Path, actions.write_results(model, result, tmp_path)):
        (expected,) = (tmp_path / "demo").rglob(written.name)
        if written.suffix == ".png":
            np.testing.assert_array_equal(Image.open(written), Image.open(expected))
        else:
            assert written.read_text() == expected.read_text()
    assert np.asarray(actions.drawing(model, result, 0.0)).shape[1] == 2 * 211
    if task == "classification":
        assert (model.tile, model.has_tta) == (None, False)
        return
    tiled = actions.predict(model, path, tiles=True).prediction
    predict(config(task), checkpoint, [path], str(tmp_path / "tiles"), "cpu", tile=64, draw=False)
    if task == "detection":
        expected = json.loads((tmp_path / "tiles/predictions.json").read_text())
        np.testing.assert_allclose(tiled.scores, [found["score"] for found in expected], atol=1e-5)
    else:
        np.testing.assert_array_equal(tiled.labels, np.asarray(Image.open(tmp_path / "tiles/labels/a.png")))
    assert model.has_tta
    augmented = actions.predict(model, path, tta=True).prediction
    assert (augmented.height, augmented.width) == (97, 211)
    whole, parts = (p.trained.model.state_dict() for p in list(model._predictors.values())[:2])
    assert [value.data_ptr() for value in whole.values()] == [value.data_ptr() for value in parts.values()]


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_clicks(checkpoints, tmp_path: Path, task: str):
    """A click is one on the image, also in an enlarged or reduced drawing; the legend is not part of the image."""
    pytest.importorskip("matplotlib")
    model = checkpoints[task]
    assert list(model.methods)[:2] == ["local", "global"]
    for height, width, scale in ((97, 211, 2), (60, 3200, 0.5)):
        result = actions.predict(model, photo(tmp_path / "a.png", height, width))
        drawing = actions.drawing(model, result, 0.3)
        assert result.scale == pytest.approx(scale)
        with patch.object(model, "explain", return_value=drawing) as explain:
            actions.explain(model, result, 40 * scale, 20 * scale, "local")
            explain.assert_called_once_with(result.image, (40, 20), "local")
            with pytest.raises(UsageError, match="legend"):
                actions.explain(model, result, 40 * scale, (height + 3) * scale, "local")
    result = actions.predict(model, photo(tmp_path / "a.png", 97, 103))
    actions.drawing(model, result, 0.3)
    figure = actions.explain(model, result, 100, 100, "local")
    assert figure.width >= 5 * 97
    assert np.asarray(figure).std() > 1


def test_limits(exported: dict[str, str], tmp_path: Path):
    """Files that are too large, or no images, are refused by their header; the message does not name the folder."""
    model = load(exported["classification"], None)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)  # 3 gigapixels
    chunks = (len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
              for part in (header, b"IDAT" + zlib.compress(bytes(9)), b"IEND"))  # fmt: skip
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    (tmp_path / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "print.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    cut = photo(tmp_path / "cut.png", 97, 211).read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    for name, said in {
        "bomb.png": "60000 x 50000 = 3000.0 million pixels; allowed: at most 25 million",
        "page.svg": "not an image; allowed: JPEG, PNG",
        "print.jpg": "not an image",
        "cut.png": "",
    }.items():
        with pytest.raises(UsageError, match=said) as raised:
            actions.predict(model, tmp_path / name)
        assert name in str(raised.value)
        assert str(tmp_path) not in str(raised.value)
    path = photo(tmp_path / "a.png", 97, 211)
    with path.open("ab") as file:
        file.write(bytes(2**21))
    inputs.check_upload(path, "a.png")
    with pytest.raises(UsageError, match=r"^'a.png': 2.0 MiB; allowed: at most 1 MiB"):
        inputs.check_upload(path, "a.png", max_bytes=2**20)


def test_broken_images_of_checkpoints_do_not_tell_the_folder(checkpoints, tmp_path: Path):
    cut = photo(tmp_path / "cut.png", 97, 211).read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    for model in checkpoints.values():
        with pytest.raises(UsageError, match=r"cut\.png") as raised:
            actions.predict(model, tmp_path / "cut.png")
        assert str(tmp_path) not in str(raised.value)


def test_what_can_be_loaded(exported: dict[str, str]):
    with pytest.raises(UsageError, match=r"'a.py': allowed: a config and a checkpoint, or an exported file"):
        load("a.py", None)
    with pytest.raises(UsageError, match="an exported file; allowed: without a checkpoint"):
        load(exported["detection"], "a.pth")
    with pytest.raises(UsageError, match="tile=3"):
        load(exported["detection"], None, tile=3)


def test_examples(exported: dict[str, str], checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are spread over a folder, or over the validation data if it is there."""
    for i in range(15):
        photo(tmp_path / f"{i:02}.png", 70, 70)
    model = load(exported["detection"], None)
    assert [path.name for path in find_examples(model, str(tmp_path))] == [f"{i:02}.png" for i in range(0, 15, 2)]
    assert find_examples(model, None) == []
    with pytest.raises(UsageError, match="no such"):
        find_examples(model, str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert find_examples(checkpoints["segmentation"], None) == []  # its data are not there


def test_exported_files_need_no_torch(exported: dict[str, str], tmp_path: Path):
    photo(tmp_path / "a.png", 97, 211)
    code = """
import sys
for name in ("torch", "timm", "mmengine", "mmcv", "cv2", "rich"):
    sys.modules[name] = None  # importing it fails
from mmgcvit.app import actions
from mmgcvit.app.commands import load
print(len(actions.predict(load(sys.argv[1], None), sys.argv[2]).prediction))
"""
    command = [sys.executable, "-c", code, exported["detection"], str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
