"""Generate the digit scenes: a small data set for detection, segmentation and classification.

python tools/make_digit_scenes.py OUT --images 1000 --size 160 --seed 0
"""

import argparse
import sys


def main() -> None:
    """Parse the command line, generate the data set, and print its location."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to create")
    parser.add_argument(
        "--images", type=int, default=1000, help="total number of scenes, one in twenty for validation (default: 1000)"
    )
    parser.add_argument("--size", type=int, default=160, help="side of a scene, in pixels (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it contains digit scenes")
    args = parser.parse_args()
    try:
        from mmgcvit.datasets.digit_scenes import make_digit_scenes
        from mmgcvit.utils.text import shown
    except ModuleNotFoundError as error:
        sys.exit(f"make_digit_scenes: {error}; pip install scikit-learn pillow rich")
    try:
        out = make_digit_scenes(args.out, args.images, args.size, args.seed, args.force)
    except (ValueError, FileExistsError) as error:
        sys.exit(shown(f"make_digit_scenes: {error}"))
    print(shown(f"digit scenes: {out} (content: {out / 'README.txt'})"))


if __name__ == "__main__":
    main()
