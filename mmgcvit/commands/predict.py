"""``mmgcvit predict``: predict on images and videos."""

from __future__ import annotations

import argparse

from mmgcvit import apis
from mmgcvit.apis.precision import AMP
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.text import counted, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("inputs", nargs="+", help="images, videos, or folders with images and videos at any depth")
    parser.add_argument("config", help="config file, or e.g. mmgcvit::detection/... for a config of the package")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    parser.add_argument(
        "--out-dir",
        default="outputs",
        help="folder for drawings in vis/ and, for a detector, predictions.json and images.json in COCO format; for a "
        "panoptic segmentor, predictions.json and panoptic/ in COCO's panoptic format; for a segmentor, label maps in "
        "labels/ and areas.json; for a classifier, classes.json and .csv (default: outputs)",
    )
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="do not draw boxes with a lower score (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images, frames or tiles per batch (default: 1)")
    parser.add_argument("--tta", action="store_true", help="merge predictions of several scales and mirrored images")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="cut larger images into overlapping square tiles of this side, and merge their predictions",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.25,
        help="overlap of neighbouring tiles, as a fraction of their side (default: 0.25)",
    )
    parser.add_argument(
        "--ann-file", help="COCO file that provides the image and category ids for a detector's predictions"
    )
    parser.add_argument(
        "--track-objects",
        action="store_true",
        help="number the objects that a detector finds in a video, with the same number in each frame",
    )
    parser.add_argument("--amp", choices=tuple(AMP), help="mixed precision of the backbone: fp16 (on a GPU) or bf16")
    apis.add_pixels_argument(parser)
    parser.add_argument("--no-draw", action="store_true", help="write the predictions only")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    with apis.short_output(), trust_checkpoints(args.trust_checkpoint):
        found = apis.predict(
            args.config,
            args.checkpoint,
            args.inputs,
            args.out_dir,
            args.device,
            args.score_thr,
            args.batch_size,
            args.tta,
            args.tile,
            args.overlap,
            args.ann_file,
            not args.no_draw,
            args.max_pixels,
            args.amp,
            args.track_objects,
        )
    counts = [counted(count, word) for count, word in ((found.images, "image"), (found.frames, "frame")) if count]
    objects = f", {counted(found.objects, found.unit.removesuffix('s'))}" if found.unit else ""
    drawings = "" if args.no_draw else f", drawings in {args.out_dir}/vis"
    print(shown(f"{' and '.join(counts)}{objects}: predictions in {found.file}{drawings}"))
    return 0
