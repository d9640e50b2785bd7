"""Fetching published weights by name from an unreliable server."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import TINY
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmgcvit import GCViT
from mmgcvit.backbone import ARCHS
from mmgcvit.checkpoint import CheckpointError, download
from mmgcvit.checkpoint.weights import WEIGHTS, Weights, cache_dir, fetch

NAME = "gcvit://tiny_in1k"
FILE = WEIGHTS[NAME].filename


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; each request consumes one of ``faults``."""

    def __init__(self, content: bytes) -> None:
        self.content, self.faults, self.ranges, self.tags = content, [], True, True
        self.requests: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        fault = self.server.faults.pop(0) if self.server.faults else None
        content = self.server.content
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>sign in</html>")
            return
        if fault == "garbage":
            self.wfile.write(b"what?\r\n\r\n")
            self.close_connection = True
            return
        if isinstance(fault, str) and "://" in fault:
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
            return
        if fault == "endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(bytes(1 << 20))
            return
        tag = hashlib.sha256(content).hexdigest()
        same = self.headers.get("If-Range") == tag
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges and same else 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Type", "application/octet-stream")
        if fault == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])
            self.close_connection = True
            return
        if fault == "lengthless":
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if fault == "silent":
            self.wfile.write(rest[:10])
            self.wfile.flush()
            time.sleep(1.5)
            return
        if fault == "drip":
            for byte in rest[:200]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
            return
        if fault == "slow":
            for i in range(0, len(rest), len(rest) // 8 + 1):
                self.wfile.write(rest[i : i + len(rest) // 8 + 1])
                self.wfile.flush()
                time.sleep(0.1)
            return
        self.wfile.write(rest[: len(rest) // 2] if fault == "break" else rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(files, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))
                        if threading.current_thread() is threading.main_thread() else sleep(seconds))  # fmt: skip
    with Server(files["nvidia"].read_bytes()) as found:
        monkeypatch.setenv("MMGCVIT_MIRROR", found.url + "/")
        threading.Thread(target=found.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
        yield found
        found.shutdown()


def rest_of_cache() -> set[str]:
    return {path.name for path in cache_dir().iterdir() if path.suffix != ".lock"}


def test_table():
    assert len(WEIGHTS) == 16
    assert len({row.url for row in WEIGHTS.values()}) == 16
    for name, row in WEIGHTS.items():
        assert row.name == name
        assert row.arch in ARCHS
        assert row.window_size == ARCHS[row.arch]["window_size"]
        # at the training size the smallest map is a single window
        assert row.input_size == 32 * row.window_size[3]
        assert row.licence == "CC BY-NC-SA 4.0"
        assert row.url.startswith("https://")
        assert name.startswith("timm://") == bool(row.sha256) == (row.top1 is None)
    crops = {row.arch: row.crop for row in WEIGHTS.values() if row.name.startswith("gcvit://")}
    assert [arch for arch, crop in crops.items() if crop == 0.875] == ["xtiny", "tiny2", "small", "small2"]
    assert [row.arch for row in WEIGHTS.values() if row.squash] == ["large-384", "large-512"]


def test_rows_of_timm_match_timm():
    timm = pytest.importorskip("timm")
    for name, row in WEIGHTS.items():
        if name.startswith("timm://"):
            cfg = timm.get_pretrained_cfg(name.removeprefix("timm://"))
            assert cfg.url.rsplit("/", 1)[-1] == row.filename
            assert (cfg.input_size[-1], cfg.crop_pct) == (row.input_size, row.crop)


def test_fetch(server):
    path = fetch(NAME)
    assert path == cache_dir() / FILE
    assert path.read_bytes() == server.content
    assert rest_of_cache() == {FILE, FILE + ".sha256"}
    digest = hashlib.sha256(server.content).hexdigest()
    assert (cache_dir() / f"{FILE}.sha256").read_text() == f"{digest}  {FILE}\n"
    assert fetch(NAME) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize("faults", [["break"], ["break", "break"], [503], ["break", 500, "break"], [429, 408],
                                    ["garbage"]])  # fmt: skip
def test_interrupted_download_resumes(server, faults: list):
    server.faults = list(faults)
    assert fetch(NAME).read_bytes() == server.content
    breaks = faults.count("break")
    assert len({r for r in server.requests if r}) == breaks  # each request starts at a later offset than the one before


def test_server_without_ranges(server):
    server.faults, server.ranges = ["break", "chunks"], False
    assert fetch(NAME).read_bytes() == server.content
    assert len(server.requests) == 3


def test_next_call_resumes(server):
    server.faults = ["break", *[503] * 4]
    with pytest.raises(CheckpointError, match=r"5 attempts failed, the last with HTTPError.*503"):
        fetch(NAME)
    assert rest_of_cache() == {FILE + ".part", FILE + ".part.from"}
    assert fetch(NAME).read_bytes() == server.content
    assert server.requests[-1] == f"bytes={len(server.content) // 2}-"


def test_partial_file_longer_than_the_file(server):
    cache_dir().mkdir(parents=True)
    (cache_dir() / f"{FILE}.part").write_bytes(server.content + b"more")
    tag = hashlib.sha256(server.content).hexdigest()
    (cache_dir() / f"{FILE}.part.from").write_text(f"{server.url}/{FILE}\n{tag}")
    assert fetch(NAME).read_bytes() == server.content


def test_slow_server(server):
    server.faults = ["slow"]
    assert fetch(NAME).read_bytes() == server.content


def test_stalled_server(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.faults = ["silent"]
    assert fetch(NAME).read_bytes() == server.content
    assert server.requests[-1] == "bytes=10-"


@pytest.mark.parametrize("code", [404, 401, 403])
def test_not_there(server, code: int):
    server.faults = [code]
    with pytest.raises(CheckpointError, match=rf"{FILE}: the server responds with {code} .*MMGCVIT_MIRROR"):
        fetch(NAME)
    assert rest_of_cache() == set()
    assert len(server.requests) == 1


def test_a_web_page(server):
    server.faults = ["page"]
    with pytest.raises(CheckpointError, match="the server sends a web page"):
        fetch(NAME)
    assert rest_of_cache() == set()


def test_file_differs_from_published(server):
    with pytest.raises(CheckpointError, match=r"not the expected file: its SHA-256 is .*, not ac783954"):
        fetch("timm://gcvit_tiny.in1k")
    assert rest_of_cache() == set()


def test_file_differs_from_recorded(server, files):
    path = fetch(NAME)
    path.unlink()
    server.content = files["mmgcvit"].read_bytes()
    with pytest.raises(CheckpointError, match="not the expected file"):
        fetch(NAME)
    assert rest_of_cache() == {FILE + ".sha256"}


def test_file_changed_in_the_cache(server):
    path = fetch(NAME)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(CheckpointError, match="has changed since it was fetched"):
        fetch(NAME)


def test_no_server(server, monkeypatch):
    monkeypatch.setenv("MMGCVIT_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"http://127.0.0.1:9/gcvit_1k_tiny.pth.tar: 5 attempts failed"):
        fetch(NAME)


def test_concurrent_calls_download_once(server):
    server.faults = ["slow"]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [NAME] * 4))
    assert len(set(paths)) == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_folder_as_mirror(files, monkeypatch, tmp_path: Path, scheme: str):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMGCVIT_MIRROR", f"{scheme}{tmp_path}")
    with pytest.raises(CheckpointError, match=rf"MMGCVIT_MIRROR: .*{FILE}: no such file"):
        fetch(NAME)
    (tmp_path / FILE).write_bytes(files["nvidia"].read_bytes())
    assert fetch(NAME).read_bytes() == files["nvidia"].read_bytes()


def test_unknown_names():
    with pytest.raises(CheckpointError, match="weights 'gcvit://tiny'; allowed: gcvit://xxtiny_in1k"):
        fetch("gcvit://tiny")


def test_a_url(server):
    one, other = fetch(f"{server.url}/a/w.pth"), fetch(f"{server.url}/b/w.pth")
    assert one != other
    assert one.name.endswith("-w.pth")


def test_names_work_in_mmengine(server, monkeypatch, classifier):
    name = "gcvit://of_this_test"
    monkeypatch.setitem(WEIGHTS, name, Weights(name, "https://x/y.pth", "tiny", 224, 1.0))
    found = CheckpointLoader.load_checkpoint(name, map_location="cpu")
    assert found["epoch"] == 310
    for load in (lambda model: load_checkpoint(model, name, logger="current"), GCViT.init_weights):
        model = GCViT(TINY, init_cfg=dict(type="Pretrained", checkpoint=name))
        load(model)
        assert torch.equal(model.stem.conv.weight, classifier.backbone.stem.conv.weight)


@pytest.mark.parametrize("tags", [True, False])
def test_file_changes_between_two_attempts(server, files, tags: bool):
    server.tags = tags
    server.faults = ["break", *[503] * 4]
    with pytest.raises(CheckpointError, match="5 attempts failed"):
        fetch(NAME)
    server.content = files["mmgcvit"].read_bytes()
    assert fetch(NAME).read_bytes() == server.content


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", None])
def test_download_without_a_checkpoint_is_removed(server, files, content: bytes | None):
    right = server.content
    server.content = right[: len(right) // 2] if content is None else content
    with pytest.raises(CheckpointError, match="the download is not a checkpoint and was removed"):
        fetch(NAME)
    assert rest_of_cache() == set()
    server.content = right
    assert fetch(NAME).read_bytes() == right


def test_truncated_response_without_a_length(server):
    server.faults = ["lengthless"]
    with pytest.raises(CheckpointError, match="the download is not a checkpoint"):
        fetch(NAME)
    assert fetch(NAME).read_bytes() == server.content


def test_invalid_url():
    with pytest.raises(CheckpointError, match="not a URL"):
        fetch("http://127.0.0.1:port/x.pth")


def test_a_server_that_sends_a_byte_at_a_time(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.faults = ["drip"] * 5
    with pytest.raises(CheckpointError, match=r"5 attempts failed, the last with TimeoutError: only \d+ bytes"):
        fetch(NAME)


@pytest.mark.parametrize("with_length", [True, False])
def test_limit_of_size(server, monkeypatch, with_length: bool):
    monkeypatch.setenv("MMGCVIT_MAX_DOWNLOAD", "0.0001" if with_length else "0.01")
    server.faults = [] if with_length else ["endless"]
    with pytest.raises(CheckpointError, match=r"sends .* bytes or more; allowed: .*MMGCVIT_MAX_DOWNLOAD"):
        fetch(NAME)
    assert rest_of_cache() == set()
    monkeypatch.setenv("MMGCVIT_MAX_DOWNLOAD", "much")
    with pytest.raises(CheckpointError, match="MMGCVIT_MAX_DOWNLOAD='much'; allowed: a number of gigabytes"):
        fetch(NAME)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/passwd", "http://example.com/a", "data://x/a"])
def test_redirects_to_other_schemes(server, target: str):
    server.faults = [target]
    with pytest.raises(CheckpointError, match=r"allowed: https|responds with 302"):
        fetch(NAME)
    assert rest_of_cache() <= {FILE + ".part.from"}
    assert len(server.requests) == 1


def test_urls_are_encrypted(monkeypatch):
    with pytest.raises(CheckpointError, match=r"http is not encrypted.*MMGCVIT_ALLOW_HTTP=1"):
        fetch("http://example.com/a.pth")
    monkeypatch.setenv("MMGCVIT_ALLOW_HTTP", "1")
    download.check_url("http://example.com/a.pth")
    for url in ("https:///a.pth", "ftp://example.com/a.pth", "a.pth"):
        with pytest.raises(CheckpointError, match="not a URL to download from"):
            download.check_url(url)


@pytest.mark.parametrize("record", [b"", b"\n", b"0123456789", b"\xff\xfe\x00"])
def test_a_torn_record(server, record: bytes):
    path = fetch(NAME)
    (cache_dir() / f"{FILE}.sha256").write_bytes(record)
    assert fetch(NAME) == path
    assert (cache_dir() / f"{FILE}.sha256").read_text().split()[0] == hashlib.sha256(server.content).hexdigest()
    (cache_dir() / f"{FILE}.sha256").write_bytes(record)
    path.unlink()
    (cache_dir() / f"{FILE}.part").write_bytes(b"x")
    (cache_dir() / f"{FILE}.part.from").write_bytes(record)
    assert fetch(NAME).read_bytes() == server.content
