"""Encode images to bits and decode them again: how much the tokenizer keeps."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import add_device_arguments, device_from, precision, say, tell_left_out
from bld.cli.outputs import refuse_foreign
from bld.cli.words import where

HELP = "encode and decode images, and measure what is lost"
SHOWN = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the images, how many, where to."""
    parser.add_argument(
        "run_folder", metavar="RUN", type=where, help="a run with a trained tokenizer, a saved model, or a hub name"
    )
    parser.add_argument("--data", required=True, metavar="WHERE", help="folder, .zip or .tar of images, or digits")
    parser.add_argument("--num", type=int, help="only the first so many images")
    parser.add_argument("--out", type=Path, help="folder for pairs.png (originals over reconstructions) and psnr.json")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure PSNR over all images and show some pairs."""
    import dataclasses

    import torch

    from bld._version import __version__
    from bld.data import ImageSet, make_pairs, save_png
    from bld.evaluation.metrics.reconstruction import score_reconstructions
    from bld.io.files import write_json
    from bld.training.init_from import Origin

    if args.out is not None:
        refuse_foreign([args.out / "pairs.png", args.out / "psnr.json"])
    origin = Origin.find(args.run_folder)
    tokenizer = origin.tokenizer()
    tokenizer.to(device_from(args))
    if args.compile:
        tokenizer.compile(dynamic=False)
    images = ImageSet.open(
        args.data, origin.preprocessing().of_centres(), progress=True, labels="none", max_pixels=origin.max_pixels()
    )
    tell_left_out(images)
    with precision(args, tokenizer.device), torch.no_grad():
        score = score_reconstructions(tokenizer, images, limit=args.num)
        count = min(tokenizer.config.images_at_a_time(SHOWN), score.images)
        shown = images.centre(range(count)).to(tokenizer.device)
        rebuilt = tokenizer.decode(tokenizer.encode(shown)).clamp(-1, 1)
    say(
        f"{score.images:,} images as codes of {tokenizer.code_shape} ({tokenizer.config.code_bytes:,} bytes): "
        f"PSNR {score.psnr_mean:.2f} ± {score.psnr_std:.2f} dB"
        + ("." if score.drawn_psnr_mean is None else f" ({score.drawn_psnr_mean:.2f} dB from drawn codes).")
    )
    if args.out is not None:
        sheet = make_pairs(shown.cpu(), rebuilt.cpu(), scale=max(1, 64 // shown.shape[-1]))
        save_png(sheet, args.out / "pairs.png", sheet=True)
        write_json(args.out / "psnr.json", {"data": args.data, **dataclasses.asdict(score), "bld": __version__})
        say(f"Originals over reconstructions: {args.out / 'pairs.png'}")
