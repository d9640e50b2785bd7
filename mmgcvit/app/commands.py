"""``mmgcvit app``: serve a web page to try a model."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from mmgcvit.app.models import AppModel, ExportedModel
from mmgcvit.errors import UsageError
from mmgcvit.report.numbers import spread
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.inputs import check_options, list_inputs

EXPORTED = (".onnx", ".xml")
EXAMPLES = 8  # most example images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="config file, or an exported file: .onnx, .xml")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file or URL, for a config")
    parser.add_argument(
        "--examples",
        metavar="FOLDER",
        help=f"folder with images to try, of which {EXAMPLES} are shown (default: the config's validation images)",
    )
    parser.add_argument("--device", help="cpu, cuda:0, ... for a config (default: a GPU if there is one)")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="first value of the slider for drawn boxes (default: 0.3)"
    )
    parser.add_argument(
        "--tile", type=int, default=640, metavar="PIXELS", help="side of the tiles of the switch (default: 640)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1, this machine)"
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860 on)")
    add_trust_argument(parser)


def load(
    model: str, checkpoint: str | None, device: str | None = None, tile: int = 640, trust_checkpoint: bool = False
) -> AppModel:
    """Load a model from a config and a checkpoint, or from an exported file.

    Args:
        model: config file, or exported file.
        checkpoint: file or URL, for a config.
        device: cpu, cuda:0, ...; None for a GPU if there is one.
        tile: side of the tiles, in pixels.
        trust_checkpoint: unpickle a checkpoint that the safe reader refuses. **It can run any code.**

    Raises:
        UsageError: it cannot be loaded.
    """
    check_options(1, tile, 0)
    if Path(model).suffix.lower() in EXPORTED:
        if checkpoint is not None or device is not None:
            raise UsageError(f"{model!r}: an exported file; allowed: without a checkpoint and --device")
        return ExportedModel(model, tile)
    if checkpoint is None:
        raise UsageError(f"{model!r}: allowed: a config and a checkpoint, or an exported file ({', '.join(EXPORTED)})")
    from mmgcvit.app.checkpoint import CheckpointModel
    from mmgcvit.checkpoint import trust_checkpoints
    from mmgcvit.engine.progress import short_output

    with short_output(), trust_checkpoints(trust_checkpoint):
        return CheckpointModel(model, checkpoint, device, tile)


def find_examples(model: AppModel, folder: str | None) -> list[Path]:
    """Return example images, spread over those of a folder, or of the model's validation data.

    Raises:
        UsageError: the folder does not exist, or has no images.
    """
    if folder is not None:
        paths: Sequence[Path] = [entry.path for entry in list_inputs([folder], None, videos=False)[0]]
    else:
        paths = model.examples()
    return [paths[index] for index in spread(EXAMPLES, len(paths))]


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted; returns the exit status."""
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs gradio: pip install 'mmgcvit[app]'")
    from mmgcvit.app.page import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files are removed
    try:
        model = load(args.model, args.checkpoint, args.device, args.tile, args.trust_checkpoint)
        examples = find_examples(model, args.examples)
        with serve(model, examples, args.score_thr, args.host, args.port) as url:
            print(f"{url}  (stop with Ctrl+C)", flush=True)
            while True:  # a signal that another thread gets would not end a longer sleep
                time.sleep(0.5)
    except KeyboardInterrupt:
        print()
    return 0
