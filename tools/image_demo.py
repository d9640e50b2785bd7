"""Predict on images and videos: python tools/image_demo.py INPUT [...] CONFIG CHECKPOINT --out-dir DIR"""

import argparse
import sys

from mmgcvit import apis


def main() -> None:
    """Read the arguments, run the model, print where the drawings and the predictions are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+", help="images, videos, or folders of them")
    parser.add_argument("config", help="config file, or mmgcvit::detection/... and the like for the package's own")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    parser.add_argument(
        "--out-dir",
        default="outputs",
        help="gets drawings in vis/; from a detector predictions.json and images.json in COCO's formats, from a "
        "segmentor label maps in labels/ and areas.json, from a classifier classes.json (outputs)",
    )
    parser.add_argument("--device", help="cpu, cuda:0, ... (a GPU if there is one)")
    parser.add_argument("--score-thr", type=float, default=0.3, help="boxes under this score are not drawn (0.3)")
    parser.add_argument("--batch-size", type=int, default=1, help="images, frames or tiles at a time (1)")
    parser.add_argument("--tta", action="store_true", help="merge predictions of several scales and mirrored images")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="cut larger images into overlapping square tiles of this side, and merge their predictions",
    )
    parser.add_argument(
        "--overlap", type=float, default=0.25, help="of neighbouring tiles, as a share of their side (0.25)"
    )
    parser.add_argument("--ann-file", help="COCO file whose image and category ids a detector's predictions get")
    parser.add_argument("--no-draw", action="store_true", help="write the predictions only")
    args = parser.parse_args()
    try:
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
        )
    except apis.UsageError as error:
        sys.exit(f"image_demo: {error}")
    counts = [f"{count} {word}" for count, word in ((found.images, "images"), (found.frames, "frames")) if count]
    objects = f", {found.objects} objects" if found.file.endswith("predictions.json") else ""
    print(
        f"{' and '.join(counts)}{objects}: predictions in {found.file}"
        + ("" if args.no_draw else f", drawings in {args.out_dir}/vis")
    )


if __name__ == "__main__":
    main()
