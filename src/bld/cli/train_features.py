"""Train a classifier on the images' own labels; its features judge samples without any download."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from bld.cli.common import say, size_of_images, tell_left_out
from bld.cli.outputs import CLASSIFIER, refuse_foreign_folder
from bld.errors import DataError

HELP = "a classifier of the data's own labels, whose features judge samples offline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Images, folder, size and steps."""
    parser.add_argument("--data", required=True, metavar="WHERE", help="images in one folder per class, or digits")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the classifier goes")
    parser.add_argument("--image-size", type=int, metavar="S", help="pixels (default: the images' shorter side)")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default 2,000)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default 128)")
    parser.add_argument("--flip", action="store_true", help="show images mirrored too")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order")


def run(args: argparse.Namespace) -> None:
    """Train, measure, save."""
    from bld.data import ImageSet, Preprocessing
    from bld.data.tables import TableError
    from bld.evaluation.classifier_training import train_classifier

    refuse_foreign_folder(args.out, ["config.json", "model.safetensors"], (CLASSIFIER,))
    size = args.image_size or size_of_images(args.data)
    try:
        everything = ImageSet.open(args.data, Preprocessing(size, flip=args.flip), progress=True)
    except TableError as error:
        raise DataError(f"{error.found}: correct it, or take it away where folders are the classes.") from error
    tell_left_out(everything)
    train, held_out = everything.split(0.1, args.seed)
    made = train_classifier(
        train, held_out, args.out, steps=args.steps, batch_size=args.batch_size, seed=args.seed, replace=False,
        say=say,
    )  # fmt: skip
    next_one = f"bld evaluate RUN --features {quote(str(args.out))}"
    say(f"{made.name}: {100 * made.accuracy:.1f}% of held-out images; next: {next_one}")
