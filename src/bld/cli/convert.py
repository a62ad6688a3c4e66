"""Import models of other code: `official` reads the public checkpoints of the paper's authors."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from bld.cli.common import say
from bld.cli.outputs import refuse_foreign_folder

HELP = "import the paper's public checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which kind, from where, where to, and what the files cannot tell."""
    parser.add_argument("kind", choices=["official"], metavar="official", help="the layout of the paper's public code")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="holds saved_models/*_ema_STEP.th")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the converted model goes")
    parser.add_argument("--autoencoder", type=Path, metavar="LOGDIR", help="the autoencoder's folder, if another")
    parser.add_argument("--step", type=int, help="of the files (default: the newest average)")
    parser.add_argument("--autoencoder-step", type=int, metavar="STEP", help="of the autoencoder's (default: --step)")
    parser.add_argument("--heads", type=int, help="attention heads of the prior (default 12)")
    parser.add_argument(
        "--diffusion-steps", type=int, metavar="T", help="of the prior (default: as in its noise schedule, else 64)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="S", help="pixels (default: as the prior's positions say, else 256)"
    )
    parser.add_argument(
        "--posterior",
        choices=["plugin", "exact"],
        help="plugin samples as the public code does (default), exact by eq. (8)",
    )
    parser.add_argument("--target", choices=["flip", "z0"], help="what the prior predicts (default flip: --p_flip)")


def run(args: argparse.Namespace) -> None:
    """Convert, and say what can be done with it."""
    from bld.serialization.official import convert, options_from

    refuse_foreign_folder(args.out, ["tokenizer", "prior", "diffusion", "config.json", "model_index.json"])

    options = options_from(
        step=args.step,
        autoencoder_step=args.autoencoder_step,
        image_size=args.image_size,
        heads=args.heads,
        steps=args.diffusion_steps,
        posterior=args.posterior,
        target=args.target,
    )
    convert(args.logdir, args.out, options, say, args.autoencoder)
    say(f"Written: {args.out}; next: {_next(args.out)}")


def _next(out: Path) -> str:
    name = quote(str(out))
    if (out / "model_index.json").is_file():
        return f"bld sample {name}"
    return f"bld reconstruct {name} --data IMAGES, or bld train-prior --data IMAGES --out RUN --tokenizer {name}"
