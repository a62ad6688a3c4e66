"""Say what a preset or a run is and costs, before anything is trained: sizes, parameters, FLOPs, cache."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bld.cli.common import duration, say
from bld.cli.words import where
from bld.errors import SettingError

if TYPE_CHECKING:
    from bld.training.run_folder import RunFolder
    from bld.training.settings import Settings

UTILISATION = 0.4
HELP = "sizes, parameters, FLOPs and cache of a preset or run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run or preset, how many images, and key=value overrides."""
    parser.add_argument(
        "what", metavar="RUN|PRESET", type=where, help="folder of a run, a preset's name, or a YAML file"
    )
    parser.add_argument("--images", type=int, help="images of the data (default: the run's, or 100,000)")
    parser.add_argument("--classes", type=int, help="classes of the data (default: the run's, or 0)")
    parser.add_argument("--device", metavar="NAME", help="simulate training on this kind: h200, h100, a100-80, …, cpu")
    parser.add_argument("--devices", type=int, help="so many of them (default 1)")
    parser.add_argument("--utilisation", type=float, help=f"part of a device's rate reached (default {UTILISATION})")
    parser.add_argument("--budget", metavar="TIME", help="measure this machine: what it trains in this time")
    parser.add_argument("--show-settings", action="store_true", help="print every setting as YAML")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="single settings, for example prior.dim=256")


def run(args: argparse.Namespace) -> None:
    """Print a table."""
    from bld.evaluation.load_run import images_without_decoding
    from bld.planning.cost import describe, plan
    from bld.training.code_cache import CodeCache
    from bld.training.config import load_settings
    from bld.training.run_folder import RunFolder
    from bld.training.settings import settings_tree
    from bld.training.time_budget import STAGES

    folder = RunFolder(Path(args.what))
    images = 100_000 if args.images is None else args.images
    classes = 0 if args.classes is None else args.classes
    if images < 1 or classes < 0:
        raise SettingError(f"--images is at least 1 and --classes at least 0, not {images} and {classes}.")
    if args.device is None and (args.devices is not None or args.utilisation is not None):
        raise SettingError("--devices and --utilisation need a kind of device: name it with --device, such as h200.")
    if folder.has_settings():
        settings = load_settings(base=settings_tree(folder.settings()), overrides=args.settings)
        if (folder.codes / "header.json").is_file():
            cache = CodeCache(folder.codes)
            images = len(cache) if args.images is None else images
            classes = len(cache.classes) if args.classes is None else classes
        elif folder.data.is_file():  # which is before the images are encoded
            train, _, why = images_without_decoding(folder.settings(), folder)
            if train is None and None in (args.images, args.classes):
                say(f"The run's images are not counted ({why}): say them by --images and --classes.")
            elif train is not None:
                images = len(train) if args.images is None else images
                classes = len(train.classes) if args.classes is None else classes
    else:
        _refuse_without_settings(args.what)
        settings = load_settings(preset=args.what, overrides=args.settings)
    done = _done(folder, images, args.settings)
    given = folder.progress().get("tokenizer", {}).get("given")
    stages = ("prior",) if given else STAGES
    if given:
        say(f"{'tokenizer':<34}is that of {given}, used as it is")
    for name, value in describe(settings, images, classes, stages):
        say(f"{name:<34}{done.get(name, value)}")
    if args.device:
        devices = 1 if args.devices is None else args.devices
        use = UTILISATION if args.utilisation is None else args.utilisation
        say("")
        for name, value in plan(settings, images, classes, args.device, devices, use, stages):
            say(f"{name:<34}{value}".rstrip())
    if args.budget:
        say("")
        said = [override.partition("=")[0] for override in args.settings]
        for name, value in _bought(folder, settings, duration(args.budget), said, stages):
            say(f"{name:<34}{value}")
    if args.show_settings:
        import yaml

        say("\n" + yaml.safe_dump(settings_tree(settings), sort_keys=False))


def _refuse_without_settings(what: str) -> None:
    """`SettingError` for a folder that is no run, unless it has a preset's name, which is then meant."""
    from bld.serialization.models import CONFIG
    from bld.training.config import preset_names

    folder = Path(what)
    if not folder.is_dir() or what in preset_names():
        return
    parts = [folder / part / CONFIG for part in ("", "tokenizer", "prior")]
    described = next((path for path in parts if path.is_file()), None)
    if described is None:
        raise SettingError(f"{folder} holds no run: name a run, a preset or a YAML file of settings.")
    raise SettingError(
        f"{folder} is a model without settings, which this command reckons with: name its run or a preset; its "
        f"networks are described in {described}."
    )


def _done(folder: RunFolder, images: int, overrides: Sequence[str]) -> dict[str, str]:
    """How the stages of a run were trained, where that is recorded and no setting asks what another way would cost."""
    found = {}
    for stage in ("tokenizer", "prior"):
        done = folder.progress().get(stage, {})
        if done.get("trained_with") and not any(word.startswith(f"{stage}_training.") for word in overrides):
            sizes = dict.fromkeys(one["batch_size"] for one in done["trained_with"])
            of = ", then ".join(f"of {size}" for size in sizes)
            found[f"{stage} training"] = f"{done['steps']:,} steps {of}: {done['images'] / images:,.1f} epochs"
    return found


def _bought(
    folder: RunFolder, settings: Settings, seconds: float, said: Sequence[str], stages: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(what, how much) of a training of the stages in this time on this machine, as `bld train` would begin it."""
    from bld.planning.budget import measure, plan, with_sizes
    from bld.planning.open_sizes import OpenSizes

    pace = measure(settings)
    bought = OpenSizes(folder, settings, said).for_time(seconds, stages, 1, pace)
    if bought is None:  # the sizes stay as they are
        bought = plan(replace(settings, sizes_by_budget=False), seconds, pace, said, stages)
    sized = with_sizes(settings, bought.sizes)
    yield "-- this machine --", ""
    for stage, steps in bought.steps.items():
        batch = getattr(sized, f"{stage}_training").batch_size
        yield f"{stage} training reaches", f"{getattr(pace, stage) / 1e9:,.0f} GFLOP/s"
        yield f"in {bought.seconds[stage] / 60:,.1f} minutes", f"about {steps:,} steps of {batch}"
    for key, value in bought.sizes.items():
        yield f"with {key}", f"{value}"
