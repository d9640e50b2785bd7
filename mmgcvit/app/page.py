"""The web page, with Gradio."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from mmgcvit.app import actions
from mmgcvit.app.guard import Guard
from mmgcvit.app.models import AppModel
from mmgcvit.errors import UsageError
from mmgcvit.utils.inputs import MAX_UPLOAD_BYTES, check_upload
from mmgcvit.utils.text import counted

WAITING = 16  # most requests that wait for the model
SESSIONS = 32  # visitors whose last image is kept in memory
KEPT = 3600  # seconds that an image is kept, in memory and on disk
START = "Upload an image, or take one."
#: On a phone the result follows the image, and the controls come last.
CSS = """
.gradio-container {max-width: 1400px !important}
footer {display: none !important}
#main {display: grid; grid-template: "upload results" auto "controls results" 1fr / minmax(0, 2fr) minmax(0, 3fr)}
#upload {grid-area: upload} #results {grid-area: results} #controls {grid-area: controls}
@media (max-width: 700px) {#main {grid-template: "upload" auto "results" auto "controls" auto / minmax(0, 1fr)}}
"""


def accept_files_only(image: Any) -> None:
    """Let a component of Gradio accept uploaded files only, and pass on their paths.

    Gradio would also download URLs, and decode data in the request, both without limits on their size. (It writes a
    stub file beside a module that has a subclass of a component, so this changes an instance.)
    """
    move_to_cache = image.async_move_resource_to_block_cache

    async def move_file(path: Any) -> Any:
        if str(path).lower().startswith(("http:", "https:")):
            raise gr.Error("a URL; allowed: uploaded images", print_exception=False)
        return await move_to_cache(path)

    image.async_move_resource_to_block_cache = move_file
    image.preprocess = lambda payload: payload and payload.path


def build_page(model: AppModel, folder: Path, examples: Sequence[Path] = (), score_thr: float = 0.3) -> Any:
    """Build the page.

    Args:
        model: the model.
        folder: folder for files that visitors may download; :func:`serve` removes it.
        examples: images to try, in ``folder``.
        score_thr: first value of the threshold for drawn boxes.

    Returns:
        Gradio's Blocks.
    """

    def views(result: actions.Result | None, threshold: float) -> list[Any]:
        """Drawing, line and table of a result."""
        if result is None:
            return [None, START, gr.Dataframe(visible=False)]
        columns, rows = actions.table(result, threshold)
        listed = gr.Dataframe(headers=columns, value=rows, visible=True)
        return [actions.drawing(model, result, threshold), actions.summary(result, threshold), listed]

    def predict(path: str | None, threshold: float, tiles: bool, tta: bool) -> list[Any]:
        """Predict on an uploaded image; what was shown of the last one is replaced also if this fails."""
        hidden = gr.Image(value=None, visible=False)
        if path is None:
            return [None, *views(None, threshold), gr.File(visible=False), hidden]
        try:
            result = actions.predict(model, path, tiles, tta)
            written = gr.File(actions.write_results(model, result, folder), visible=True)
            return [result, *views(result, threshold), written, hidden]
        except Exception as error:
            no_table, no_files = gr.Dataframe(visible=False), gr.File(visible=False)
            return [None, None, f"**No result**: {_told(error)}", no_table, no_files, hidden]

    def explain(result: actions.Result | None, method: str, event: gr.SelectData) -> Any:
        """Show what the model sees at the clicked pixel."""
        if result is None:
            gr.Warning("The image is not kept any more: upload it again.")
            return gr.Image(value=None, visible=False)
        try:
            x, y = event.index
            return gr.Image(actions.explain(model, result, x, y, method), visible=True)
        except Exception as error:
            gr.Warning(_told(error))
            return gr.Image(value=None, visible=False)

    view: dict[str, Any]
    running: dict[str, Any]
    with gr.Blocks(title=model.name, analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        state = gr.State(time_to_live=KEPT)
        gr.Markdown(f"# {model.name}\n{counted(len(model.classes), 'class')}: {_some(model.classes)}")
        with gr.Row(elem_id="main"):
            with gr.Column(elem_id="upload"):
                image = gr.Image(
                    label="Image", type="filepath", sources=["upload", "webcam", "clipboard"], height=300,
                    elem_id="image", buttons=[],
                )  # fmt: skip
                accept_files_only(image)
            with gr.Column(elem_id="controls"):
                if examples:
                    gr.Examples([[str(path)] for path in examples], image, label="Examples", elem_id="examples")
                threshold = gr.Slider(
                    0, 1, score_thr, step=0.01, label="Smallest score of drawn objects", elem_id="threshold",
                    visible=model.task == "detection",
                )  # fmt: skip
                tiles = gr.Checkbox(
                    label=f"Tiles of {model.tile} pixels, for small objects in large images", elem_id="tiles",
                    visible=model.tile is not None,
                )  # fmt: skip
                tta = gr.Checkbox(
                    label="Test-time augmentation: several scales, mirrored", elem_id="tta", visible=model.has_tta
                )
                methods = [(title, name) for name, title in model.methods.items()]
                method = gr.Dropdown(
                    methods, value=methods[0][1] if methods else None, label="A click on the result shows",
                    visible=bool(methods), elem_id="method",
                )  # fmt: skip
            with gr.Column(elem_id="results"):
                line = gr.Markdown(START, elem_id="line")
                view = dict(interactive=False, show_label=False, buttons=["download", "fullscreen"])  # no label on it
                result = gr.Image(label="Result", elem_id="result", **view)
                figure = gr.Image(label="What the model sees", elem_id="figure", visible=False, **view)
                rows = gr.Dataframe(label="Table", interactive=False, elem_id="table", visible=False, max_height=300)
                files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files", visible=False)

        running = dict(concurrency_limit=1, concurrency_id="model", api_visibility="private", show_progress_on=[result])
        gr.on(
            [image.change, tiles.change, tta.change], predict, [image, threshold, tiles, tta],
            [state, result, line, rows, files, figure], **running,
        )  # fmt: skip
        threshold.change(
            views, [state, threshold], [result, line, rows], trigger_mode="always_last", show_progress="hidden",
            concurrency_limit=4, api_visibility="private",
        )  # fmt: skip
        if methods:
            running["show_progress_on"] = [figure]
            result.select(explain, [state, method], figure, **running)
    page.queue(max_size=WAITING, api_open=False)  # nothing passes the queue
    return page


def _some(classes: Sequence[str], count: int = 20) -> str:
    more = f" and {len(classes) - count} more" if len(classes) > count else ""
    return ", ".join(classes[:count]) + more


def _told(error: Exception) -> str:
    """Return what a visitor may know of an error: of their input, but not of the server."""
    if isinstance(error, UsageError):
        return str(error)
    traceback.print_exception(error)
    return "the server has failed on this image; its log tells why"


@contextmanager
def serve(
    model: AppModel,
    examples: Sequence[Path] = (),
    score_thr: float = 0.3,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[str]:
    """Serve the page during the block.

    Args:
        model: the model.
        examples: images to try, which are copied.
        score_thr: first value of the threshold for drawn boxes.
        host: address to listen on: by default only this machine can connect.
        port: by default the first free one from 7860 on.

    Yields:
        The URL.

    Raises:
        UsageError: the port is not free, or the address does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="mmgcvit-app-") as folder:
        # Gradio reads these when a page is made.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", GRADIO_ALLOWED_PATHS="")
        for name in ("NO_PROXY", "no_proxy"):  # it asks itself whether it is there
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", host)))
        page = build_page(model, Path(folder), copy_examples(examples, Path(folder)), score_thr)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                inbrowser=False, show_error=False, allowed_paths=[], max_file_size=MAX_UPLOAD_BYTES, max_threads=8,
                state_session_capacity=SESSIONS, footer_links=[], run_history=False, enable_monitoring=False,
                ssr_mode=False, pwa=False, mcp_server=False, css=CSS, app_kwargs=dict(middleware=[Middleware(Guard)]),
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"host={host!r}, port={port or 'any'}: cannot be used: {error}") from error
        try:
            yield url
        finally:
            page.close(verbose=False)


def copy_examples(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Copy some of the images to a folder, under names that do not tell where they were."""
    found: list[Path] = []
    for path in paths:
        try:
            check_upload(path, path.name)
        except (UsageError, OSError):
            continue
        found.append(Path(shutil.copyfile(path, Path(tempfile.mkdtemp(dir=folder)) / path.name)))
    return found
