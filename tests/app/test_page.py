"""The page in a real browser: upload, slider, switches, click, files, camera; and what the server refuses.

The browser is the system's Chromium, headless, driven by playwright; nothing is downloaded.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mmgcvit.utils.inputs import MAX_UPLOAD_BYTES

pytest.importorskip("gradio")
pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SIZE = (90, 120)  # height and width of the images


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    """A detector with random weights, which finds four objects in every image."""
    from digit_models import config, write_checkpoint

    from mmgcvit.app.checkpoint import CheckpointModel

    path = write_checkpoint("detection", tmp_path_factory.mktemp("page") / "detector.pth")
    return CheckpointModel(config("detection"), str(path), "cpu", 64)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("secret-place")
    rng = np.random.default_rng(0)
    for name in ("first.png", "second.jpg"):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize(SIZE[::-1]).save(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def url(model, images: list[Path]) -> Iterator[str]:
    """The address of the page with two examples, served by this process."""
    from mmgcvit.app.page import serve

    with serve(model, images, score_thr=0.0) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url: str) -> Iterator[Any]:
    """The opened page; no errors in its console, and no requests to other servers."""
    context = browser.new_context(viewport=dict(width=1280, height=900), permissions=["camera"])
    page = context.new_page()
    page.set_default_timeout(30_000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
    local = (url, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(local) else wrong.append(request.url))
    page.goto(url)
    page.locator("#image input[type=file]").wait_for(state="attached")
    yield page
    context.close()
    assert not wrong


def shown(page: Any, name: str = "result") -> np.ndarray:
    """Return an image of the page as displayed to the visitor, in its own size."""
    content = page.request.get(page.locator(f"#{name} img").get_attribute("src")).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def expect_image(page: Any, expected: Any, name: str = "result") -> None:
    """Wait for an image on the page, up to the losses of WebP."""
    expected = np.asarray(expected).astype(int)
    for _ in range(50):
        image = shown(page, name)
        if image.shape == expected.shape and np.abs(image - expected).mean() < 6:
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"#{name}: {image.shape}; expected: another image, {expected.shape}")


def expect_line(page: Any, words: str) -> None:
    """Wait for the line above the drawing."""
    page.locator("#line", has_text=re.compile(words)).wait_for()


def test_upload_slider_and_files(page: Any, model: Any, images: list[Path], tmp_path: Path):
    from mmgcvit.apis import predict
    from mmgcvit.app import actions

    expected = actions.predict(model, images[0])
    scores = np.sort(expected.prediction.scores)
    assert len(scores) == 4
    page.set_input_files("#image input[type=file]", images[0])
    expect_line(page, "4 of 4 objects")
    full = np.asarray(actions.drawing(model, expected, 0.0)).astype(int)
    assert full.shape == (4 * SIZE[0], 4 * SIZE[1], 3)
    expect_image(page, full)
    page.locator("#table", has_text=f"{scores[-1]:.2f}").wait_for()
    with page.expect_download() as download:
        page.locator("#files a", has_text=re.compile("B")).nth(1).click()
    assert download.value.suggested_filename == "predictions.json"
    predict(model.cfg, model.checkpoint, [images[0]], str(tmp_path), "cpu", draw=False)
    assert json.loads(Path(download.value.path()).read_text()) == json.loads(
        (tmp_path / "predictions.json").read_text()
    )

    threshold = round(float(scores[1:3].mean()), 2)
    fewer = int((scores >= threshold).sum())
    box = page.locator("#threshold input[type=number]")
    box.fill(str(threshold))
    box.press("Enter")
    expect_line(page, f"{fewer} of 4 objects with a score of at least {threshold:.2f}")
    assert fewer < 4
    after = np.asarray(actions.drawing(model, expected, threshold)).astype(int)
    expect_image(page, after)
    assert np.abs(full - after).mean() > np.abs(shown(page) - after).mean()


def test_click_shows_attention(page: Any, model: Any, images: list[Path]):
    pytest.importorskip("matplotlib")
    from mmgcvit.app import actions

    page.locator("#examples button").first.click()
    expect_line(page, "4 of 4 objects")
    drawing = page.locator("#result img")
    drawing.scroll_into_view_if_needed()
    area = drawing.bounding_box()
    drawing.click(position=dict(x=area["width"] * 0.75, y=area["height"] * 0.25))
    page.locator("#figure img").wait_for()
    expected = actions.predict(model, images[0])
    actions.drawing(model, expected, 0.0)
    figure = actions.explain(model, expected, 4 * SIZE[1] * 0.75, 4 * SIZE[0] * 0.25, "local")
    expect_image(page, figure, "figure")


def test_switches_and_wrong_images(page: Any, images: list[Path], tmp_path: Path):
    """A result never stays beside another image."""
    page.set_input_files("#image input[type=file]", images[1])
    expect_line(page, "4 of 4 objects")
    page.get_by_label("Tiles of 64 pixels").check()
    expect_line(page, r"[5-9]|1\d of \d+ objects")  # four in each tile, merged
    (tmp_path / "wrong.png").write_text("no image")
    page.get_by_label("Remove Image").click()
    expect_line(page, "Upload an image")
    assert page.locator("#result img").count() == 0
    page.set_input_files("#image input[type=file]", tmp_path / "wrong.png")
    expect_line(page, "No result: 'wrong.png': not an image; allowed: JPEG")
    assert page.locator("#result img").count() == page.locator("#files a").count() == 0


def test_camera(page: Any):
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#image video')?.currentTime > 0")  # the first frame is there
    page.get_by_label("capture photo").click()
    expect_line(page, "4 of 4 objects")


def request(url: str, data: dict | None = None, form: bytes | None = None) -> tuple[int, str]:
    content, kind = form, "multipart/form-data; boundary=end"
    if data is not None:
        content, kind = json.dumps(data).encode(), "application/json"
    asked = urllib.request.Request(url, content, {"content-type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_file_of_the_server_is_served(url: str, images: list[Path]):
    for path in ("/etc/passwd", str(images[0]), "README.md", "../README.md", "mmgcvit/version.py", __file__):
        assert request(f"{url}gradio_api/file={path}")[0] in (403, 404), path
    for path in ("gradio_api/vibe-code/", "gradio_api/process_recording", "monitoring", "gradio_api/proxy=http://a.b/"):
        assert request(url + path)[0] == 404
    content = request(f"{url}config")[1]
    assert "first.png" in content
    assert images[0].parent.name not in content


def by_hand(url: str, image: dict) -> dict:
    """Return what the page sends for an image, with any image."""
    config = json.loads(request(f"{url}config")[1])
    (function,) = [part for part in config["dependencies"] if len(part["outputs"]) == 6]
    return dict(data=[{**image, "meta": {"_type": "gradio.FileData"}}, 0.3, False, False], fn_index=function["id"],
                session_hash="byhand", event_data=None, trigger_id=None)  # fmt: skip


def test_only_uploaded_files_are_read(url: str, images: list[Path]):
    for image in (
        dict(path=str(images[0])),
        dict(path="/etc/passwd"),
        dict(path=f"{url}favicon.ico"),
        dict(path="", url="data:image/png;base64,AAAA"),
    ):
        assert request(f"{url}gradio_api/queue/join", by_hand(url, image))[0] == 200
        answer = request(f"{url}gradio_api/queue/data?session_hash=byhand")[1]
        assert "objects have a score" not in answer
        assert "process_completed" in answer
        assert "Traceback" not in answer
        assert '"success":false' in answer or "No result" in answer, answer


def test_size_of_uploads(url: str):
    head = b'--end\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for size, wanted in ((2**20, 200), (MAX_UPLOAD_BYTES + 1, 413)):
        status, answer = request(f"{url}gradio_api/upload", form=head + bytes(size) + b"\r\n--end--\r\n")
        assert status == wanted, answer


def test_the_queue_cannot_be_passed(url: str, images: list[Path]):
    status, answer = request(f"{url}gradio_api/run/predict", by_hand(url, dict(path=str(images[0]))))
    assert status == 404
    assert "join the queue" in answer


def test_files_are_removed(model, images: list[Path]):
    from mmgcvit.app.page import serve

    with serve(model, images) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert len(list(folder.rglob("*.png"))) >= 1
        assert "127.0.0.1" in url
    assert not folder.exists()


def test_a_port_that_is_not_free(url: str, model):
    from mmgcvit.app.page import serve
    from mmgcvit.errors import UsageError

    port = int(re.search(r":(\d+)", url)[1])
    with pytest.raises(UsageError, match=f"port={port}: cannot be used"), serve(model, port=port):
        pass


@pytest.mark.slow
def test_command(images: list[Path], tmp_path: Path):
    """The command serves an exported file, and removes its files when it is ended by a signal."""
    pytest.importorskip("onnxruntime")
    onnx_models = pytest.importorskip("onnx_models")
    file = onnx_models.write_model(tmp_path / "detector.onnx")
    command = [sys.executable, "-m", "mmgcvit", "app", str(file), "--examples", str(images[0].parent)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        assert "second.jpg" in request(f"{address}config")[1]
        assert len(list(tmp_path.glob("mmgcvit-app-*"))) == 1
        process.terminate()
        assert process.wait(20) == 0
    assert list(tmp_path.glob("mmgcvit-app-*")) == []


def test_errors_of_the_command(capsys: pytest.CaptureFixture, tmp_path: Path):
    from mmgcvit.__main__ import main

    assert main(["app", str(tmp_path / "none.onnx")]) == 1
    assert main(["app", "config.py"]) == 1
    said = capsys.readouterr().err
    assert "none.onnx" in said
    assert "app: 'config.py': allowed: a config and a checkpoint, or an exported file" in said
