"""Open the web studio of a trained model: generate, inpaint, reconstruct, interpolate, flip bits, compare settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import add_device_arguments, load_pipeline, say

HELP = "a page in the browser to try a model on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, where to serve it, how many may wait, the device."""
    parser.add_argument("run_folder", metavar="RUN", help="a run, a saved pipeline, or a hub name")
    parser.add_argument("--port", type=int, help="0 takes any free one (default: the first free one from 7860)")
    parser.add_argument("--host", default="127.0.0.1", help="who can reach it (default 127.0.0.1: this machine alone)")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait; more are refused (default 16)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Load the model and serve it until interrupted."""
    from bld.data import decode_file
    from bld.runtime.precision import allow_tf32
    from bld.studio.model import Model
    from bld.studio.server import serve
    from bld.training.accelerator import autocast_dtype
    from bld.training.run_folder import RunFolder

    pipe = load_pipeline(args)
    bf16 = autocast_dtype(args.precision, pipe.device) == "bf16"
    allow_tf32(pipe.device, bf16)
    folder = Path(args.run_folder)
    name = folder.resolve().name if folder.is_dir() else args.run_folder
    typed = name if folder.is_absolute() else args.run_folder  # what visitors save says nothing of the disk's folders
    examples = tuple(decode_file(path).convert("RGB") for path in RunFolder(args.run_folder).example_images())
    model = Model(pipe, name, "bf16" if bf16 else "float32", examples, typed)
    serve(model, say, args.host, args.port, args.queue, args.open)
