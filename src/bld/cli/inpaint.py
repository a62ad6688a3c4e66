"""Fill the masked part of an image, several times over; the rest of the image stays as it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import Asked, add_sampling_arguments, load_pipeline, precision, say
from bld.cli.outputs import refuse_foreign

HELP = "fill the masked part of an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, image, mask, how many, where to, and the sampling options."""
    parser.add_argument("run_folder", metavar="RUN", help="a run, a saved pipeline, or a hub name")
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
    """Inpaint and write each filling, and all of them beside the original."""
    import torch

    from bld.data import decode_file, make_grid, save_png

    names = ["grid", *(f"{i:03d}" for i in range(args.num))]
    refuse_foreign(args.out / f"{name}.png" for name in names)
    pipe = load_pipeline(args)
    image, mask = decode_file(args.image), decode_file(args.mask)
    with precision(args, pipe.device):
        images = pipe.inpaint(
            image,
            mask,
            num_images=args.num,
            **Asked(args, pipe, args.num).of(range(args.num)),
            num_inference_steps=args.steps,
            temperature=args.temperature,
            guidance_scale=args.guidance_scale,
            generator=args.seed,
            output_type="pt",
            known_bits=args.known_bits,
            resample=args.resample,
            final=args.final,
            batch_size=args.batch_size,
        ).images
    for i, filled in enumerate(images):
        save_png(filled * 2 - 1, args.out / f"{i:03d}.png")
    row = torch.cat([pipe.preprocess(image), images]) * 2 - 1
    save_png(make_grid(row, scale=max(1, 64 // row.shape[-1])), args.out / "grid.png", sheet=True)
    say(f"{args.num} fillings in {args.out}, beside the original in {args.out / 'grid.png'}.")
