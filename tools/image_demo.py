"""Detect on pictures: python tools/image_demo.py PICTURE_OR_FOLDER [...] CONFIG CHECKPOINT --out-dir DIR"""

import argparse
import sys

from mmgcvit import apis


def main() -> None:
    """Read the arguments, detect, say where the drawings and the predictions are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("config", help="config file, or mmgcvit::detection/... for one of the package's own")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    parser.add_argument("--out-dir", default="outputs", help="gets drawings in vis/ and JSON in preds/ (outputs)")
    parser.add_argument("--device", help="cpu, cuda:0, ... (a GPU where there is one)")
    parser.add_argument("--score-thr", type=float, default=0.3, help="boxes under this score are not drawn (0.3)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at a time (1)")
    args = parser.parse_args()
    try:
        found = apis.predict(args.config, args.checkpoint, args.inputs, args.out_dir, args.device, args.score_thr,
                             args.batch_size)
    except apis.UsageError as error:
        sys.exit(f"image_demo: {error}")
    print(f"{len(found['predictions'])} pictures: drawings in {args.out_dir}/vis, predictions in {args.out_dir}/preds")


if __name__ == "__main__":
    main()
