"""Fill the masked part of an image, several times over; the rest of the image stays as it is."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from bld.cli.common import Asked, add_sampling_arguments, load_pipeline, precision, say
from bld.cli.outputs import refuse_foreign, refuse_made_otherwise
from bld.cli.words import where
from bld.errors import SettingError

HELP = "fill the masked part of an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, image, mask, how many, where to, and the sampling options."""
    parser.add_argument("run_folder", metavar="RUN", type=where, help="a run, a saved pipeline, or a hub name")
    parser.add_argument("--image", type=Path, required=True, help="the picture; resized and centre-cropped to fit")
    parser.add_argument("--mask", type=Path, required=True, help="of the same size: white is filled, black is kept")
    parser.add_argument("--num", type=int, default=4, help="number of fillings (default 4)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--known-bits",
        choices=["clean", "noised"],
        default="clean",
        help="known bits as they are (default), or at each step's noise level, as in training",
    )
    parser.add_argument(
        "--resample", type=int, default=1, help="times that each step is taken; 2 to 4 harmonise the border"
    )
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Make the fillings that are not there, and a sheet of all of them beside the original."""
    if args.num < 1 or args.batch_size < 1:
        raise SettingError(f"--num and --batch-size are at least 1, not {args.num} and {args.batch_size}.")
    import torch

    from bld.data import decode_file, make_grid, save_png
    from bld.io.files import write_json
    from bld.seeding import keyed_draws

    note, grid = args.out / "settings.json", args.out / "grid.png"
    paths = [args.out / f"{i:03d}.png" for i in range(args.num)]
    refuse_foreign([note, grid, *paths])
    pipe = load_pipeline(args)
    image, mask = decode_file(args.image), decode_file(args.mask)
    asked = Asked(args, pipe, args.num)
    settings = _settings(args, pipe) | asked.settings()
    refuse_made_otherwise(note, settings, paths)
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    for start in range(0, len(missing), args.batch_size):
        rows = missing[start : start + args.batch_size]
        with precision(args, pipe.device):
            images = pipe.inpaint(
                image,
                mask,
                num_images=len(rows),
                **asked.of(rows),
                num_inference_steps=args.steps,
                temperature=args.temperature,
                guidance_scale=args.guidance_scale,
                generator=keyed_draws(args.seed, "sample", rows),
                output_type="pt",
                known_bits=args.known_bits,
                resample=args.resample,
                final=args.final,
                batch_size=args.batch_size,
            ).images
        write_json(note, settings)
        for row, filled in zip(rows, images, strict=True):
            save_png(filled * 2 - 1, paths[row])
    sheet = torch.cat([pipe.preprocess(image), *(pipe.preprocess(decode_file(path)) for path in paths)]) * 2 - 1
    save_png(make_grid(sheet, scale=max(1, 64 // sheet.shape[-1])), grid, sheet=True)
    say(f"{args.num} fillings in {args.out} ({len(missing)} of them new), beside the original in {grid}.")


def _settings(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """Everything that decides what filling i looks like."""
    from bld.cli.sample import sampling_settings

    return {
        **sampling_settings(args, pipe),
        "classes": args.classes,
        "image": hashlib.sha256(args.image.read_bytes()).hexdigest()[:16],
        "mask": hashlib.sha256(args.mask.read_bytes()).hexdigest()[:16],
        "known_bits": args.known_bits,
        "resample": args.resample,
    }
