"""Generate images from a trained run, one PNG each and a grid; images already there are not made again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bld.cli.common import (
    Asked,
    add_sampling_arguments,
    load_pipeline,
    precision,
    precision_of,
    say,
)
from bld.cli.outputs import refuse_foreign, refuse_made_otherwise
from bld.cli.words import where
from bld.errors import SettingError

HELP = "generate images"
MOST_IN_GRID = 100
EVERY_CLASS = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, how many, where to, and the sampling options."""
    parser.add_argument("run_folder", metavar="RUN", type=where, help="a run, a saved pipeline, or a hub name")
    parser.add_argument("--num", "--num-images", type=int, default=64, help="number of images (default 64)")
    parser.add_argument("--out", type=Path, help="folder for the images (default RUN/samples/seed-SEED)")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Sample in batches, skipping what is there."""
    if args.num < 1 or args.batch_size < 1:
        raise SettingError(f"--num and --batch-size are at least 1, not {args.num} and {args.batch_size}.")
    from bld.data import save_png
    from bld.io.files import write_json
    from bld.runtime.distributed import launched

    processes = launched()
    pipe = load_pipeline(args)
    out = args.out or _default_folder(args)
    asked = Asked(args, pipe, args.num, each=True)
    note, settings = out / "settings.json", sampling_settings(args, pipe) | asked.settings()
    paths = [out / f"{i:06d}.png" for i in range(args.num)]
    refuse_foreign([note, out / "grid.png"])
    refuse_made_otherwise(note, settings, paths, precision_of("auto", pipe.device))
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    processes.wait()  # all have seen the same before anyone writes
    with precision(args, pipe.device):
        for rows, images in _batches(pipe, args, asked, missing[processes.rank :: processes.count]):
            if processes.is_main:
                write_json(note, settings)
            for row, image in zip(rows, images, strict=True):
                save_png(image, paths[row])
    processes.wait()
    if not processes.is_main:
        return
    _write_grid(paths, out, len(pipe.classes) if asked.in_turn else 0)
    say(f"{args.num} images in {out} ({len(missing)} of them new), a grid of them in {out / 'grid.png'}.")


def _default_folder(args: argparse.Namespace) -> Path:
    """RUN/samples/seed-S, or samples/NAME/seed-S for a model of the hub."""
    run = Path(args.run_folder)
    return (run / "samples" if run.is_dir() else Path("samples") / run.name) / f"seed-{args.seed}"


def sampling_settings(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """Everything that decides what image i looks like."""
    defaults = pipe.index.sampling
    return {
        "model": pipe.fingerprint(),
        "process": {"kind": type(pipe.diffusion).__name__, **pipe.diffusion.settings()},
        "seed": args.seed,
        "steps": args.steps or defaults.num_inference_steps or pipe.diffusion.steps,
        "temperature": defaults.temperature if args.temperature is None else args.temperature,
        "guidance_scale": defaults.guidance(args.guidance_scale),
        "classes": _classes(args, pipe),
        "precision": precision_of(args.precision, pipe.device),
        **({} if args.final == "threshold" else {"final": args.final}),
    }


def _classes(args: argparse.Namespace, pipe: Any) -> str | None:
    """The classes as the note says them: without --classes every one, where nothing else is asked for."""
    others = (args.prompt, args.prompts, args.condition)
    if args.classes is not None or not pipe.prior.config.num_classes or any(value is not None for value in others):
        return args.classes
    return EVERY_CLASS if EVERY_CLASS not in pipe.classes else "each in turn"


def _batches(
    pipe: Any, args: argparse.Namespace, asked: Asked, missing: list[int]
) -> Iterator[tuple[list[int], list[Any]]]:
    """(numbers, images) batch by batch; image i is the same in any batch."""
    from tqdm import tqdm

    from bld.seeding import keyed_draws

    with tqdm(total=len(missing), desc="sample", unit="image", disable=None) as bar:
        for start in range(0, len(missing), args.batch_size):
            rows = missing[start : start + args.batch_size]
            yield (
                rows,
                pipe(
                    num_images=len(rows),
                    **asked.of(rows),
                    num_inference_steps=args.steps,
                    temperature=args.temperature,
                    guidance_scale=args.guidance_scale,
                    generator=keyed_draws(args.seed, "sample", rows),
                    batch_size=args.batch_size,
                    final=args.final,
                ).images,
            )
            bar.update(len(rows))


def _write_grid(paths: list[Path], out: Path, classes: int = 0) -> None:
    """Write the grid; where `classes` of 4 to 20 are taken in turn, each has a column."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    from bld.data import decode_file, make_grid, save_png, to_unit

    images = torch.stack([pil_to_tensor(decode_file(path).convert("RGB")) for path in paths[:MOST_IN_GRID]])
    columns = classes if 4 <= classes <= 20 else max(1, round(len(images) ** 0.5))
    save_png(
        make_grid(to_unit(images), columns=columns, scale=max(1, 64 // images.shape[-1])), out / "grid.png", sheet=True
    )
