"""Draw samples with their nearest training images, which show whether a prior copies its data."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import Asked, add_sampling_arguments, load_pipeline, precision, say
from bld.cli.outputs import refuse_foreign
from bld.cli.words import refuse_other_ending, where
from bld.errors import SettingError

HELP = "samples and their nearest training images, as a picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, how many, by which distance, where to."""
    parser.add_argument("run_folder", metavar="RUN", type=where, help="a run whose images are at hand")
    parser.add_argument("--num", type=int, default=8, help="samples (default 8)")
    parser.add_argument("--k", type=int, default=10, help="neighbours of each (default 10)")
    parser.add_argument(
        "--by",
        type=where,
        default="pixels",
        metavar="WHAT",
        help="pixels (default), lpips, or features: inception, dinov2, a file.pt or a folder",
    )
    parser.add_argument("--out", type=Path, help="the picture (default RUN/neighbours.png)")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Sample, search, draw."""
    import torch

    from bld.data import make_grid, save_png
    from bld.evaluation.load_run import open_run
    from bld.evaluation.neighbours import load_measure, nearest, nearest_by, refuse_k
    from bld.training.run_folder import RunFolder

    if args.num < 1:
        raise SettingError(f"--num is at least 1, not {args.num}.")
    refuse_other_ending(args.out, ".png")
    out = args.out or Path(args.run_folder) / "neighbours.png"
    refuse_foreign([out])
    pipe = load_pipeline(args)
    opened = open_run(RunFolder(args.run_folder), torch.device("cpu"))
    if opened.train is None:
        raise SettingError(f"The run's images cannot be opened: {opened.missing}")
    if opened.remark:
        say(opened.remark)
    refuse_k(args.k, opened.train)
    measure = None if args.by == "pixels" else load_measure(args.by, pipe.device)
    with precision(args, pipe.device):
        made = pipe(
            args.num, num_inference_steps=args.steps, temperature=args.temperature, guidance_scale=args.guidance_scale,
            generator=args.seed, output_type="pt", batch_size=args.batch_size, final=args.final,
            **Asked(args, pipe, args.num, each=True).of(range(args.num)),
        )  # fmt: skip
        samples = made.images * 2 - 1
        found = nearest(samples, opened.train, args.k) if measure is None else nearest_by(
            measure, samples, opened.train, args.k, args.batch_size, pipe.device
        )  # fmt: skip
    rows = [part for i in range(args.num) for part in (samples[i : i + 1], found.images(opened.train, i))]
    save_png(make_grid(torch.cat(rows), columns=args.k + 1, scale=max(1, 64 // samples.shape[-1])), out, sheet=True)
    for i in range(args.num):
        near = zip(found.indices[i, :3].tolist(), found.mirrored[i].tolist(), strict=False)
        names = ", ".join(opened.train.names[j] + " (mirrored)" * mirrored for j, mirrored in near)
        say(f"sample {i}: nearest {names} …, distance {float(found.distances[i, 0]):.4f} by {args.by}")
    say(f"Written: {out} (samples in the first column)")
