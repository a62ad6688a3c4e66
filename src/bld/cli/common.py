"""What several commands share: their options, and how they load a pipeline."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bld.cli.presets import choose_preset, look_at
from bld.cli.words import duration, lines_of, vectors_of
from bld.errors import SettingError

if TYPE_CHECKING:
    import torch

    from bld.data import ImageSet
    from bld.pipeline import BinaryLatentDiffusionPipeline
    from bld.planning.open_sizes import OpenSizes
    from bld.training.recipe import Recipe
    from bld.training.settings import Settings


def say(message: str) -> None:
    """Print one line at once, past any progress bar."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()


# -- training ---------------------------------------------------------------------------------------------


def add_training_arguments(
    parser: argparse.ArgumentParser, budget: bool = True, stages: Sequence[str] = ("tokenizer", "prior")
) -> None:
    """--data, --out, --condition, --preset, --budget, what to begin with, and key=value overrides.

    Args:
        parser: gets the options.
        budget: whether --budget is one of them.
        stages: those that the command trains.
    """
    parser.add_argument(
        "--data",
        metavar="WHERE",
        help="folder, .zip or .tar, pattern of .tar shards, hub data set, or the word digits; a run remembers it",
    )
    parser.add_argument(
        "--out", metavar="RUN", required=True, type=Path, help="folder of the run; the same one goes on"
    )
    parser.add_argument(
        "--condition",
        type=Path,
        metavar="FILE",
        help="vectors (n, V) as .npy to condition on, one for each image in the sorted order of their names",
    )
    parser.add_argument("--preset", metavar="NAME", help="settings to start from: a preset's name or a YAML file")
    if budget:
        parser.add_argument("--budget", metavar="TIME", help="stop after this time, for example 30m or 2h")
    if "prior" in stages:
        parser.add_argument(
            "--tokenizer", metavar="WHERE", help="use the tokenizer of this run, model or hub name as it is"
        )
    if stages:
        parser.add_argument(
            "--faithful", action="store_true", help="the paper's method to the letter, without what is ours"
        )
        parser.add_argument(
            "--init-from", metavar="WHERE", help="begin with the weights of this run, model or hub name"
        )
    parser.set_defaults(stages=tuple(stages))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="single settings, for example prior.dim=256")


@contextlib.contextmanager
def recipe_from(args: argparse.Namespace) -> Iterator[Recipe]:
    """The recipe these arguments ask for, with the run's folder locked; without --preset, one that suits the images."""
    budget = duration(args.budget) if getattr(args, "budget", None) else None
    from bld.planning.open_sizes import OpenSizes
    from bld.runtime.distributed import launched
    from bld.training.condition_cache import refuse_missing_conditions
    from bld.training.config import FAITHFUL
    from bld.training.init_from import InitRequest, given_tokenizer
    from bld.training.recipe import Recipe
    from bld.training.run_folder import RunFolder
    from bld.training.run_images import refuse_other_data
    from bld.training.settings import leaves

    run, processes = RunFolder(args.out), launched()
    with contextlib.ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(run.locked())
        with processes.main_first():
            tokenizer, init_from = getattr(args, "tokenizer", None), getattr(args, "init_from", None)
            init = InitRequest.from_options(run, args.stages, tokenizer, init_from)
            preset, overrides = args.preset, [*(FAITHFUL if getattr(args, "faithful", False) else ()), *args.settings]
            if preset is None and not run.has_settings():
                choice = choose_preset(args.data, init.image_size, args.settings)
                preset, overrides = choice.name, [*choice.overrides, *overrides]
                say(choice.sentence)
            if "tokenizer" not in args.stages or tokenizer is not None:  # which is used as it is
                overrides = [x for x in overrides if x in args.settings or not x.startswith("tokenizer")]
            if args.condition is not None:
                overrides.append(f"data.condition={json.dumps(str(args.condition))}")

            def check(settings: Settings) -> None:
                init.check(settings)
                _refuse_out_as_data(args.out, settings.data.location)
                refuse_other_data(run, settings)
                if args.condition is not None or ("prior" in args.stages and not run.has_begun("prior")):
                    refuse_missing_conditions(settings)

            over = init.settings()
            settings = run.adopt(preset, overrides, args.data, False, over, check)
            if processes.is_main:
                given = [*(override.partition("=")[0] for override in overrides), *(key for key, _ in leaves(over))]
                sizes = OpenSizes(run, settings, given)
                if budget is not None:
                    is_given = init.tokenizer is not None or given_tokenizer(run) is not None
                    stages = [stage for stage in args.stages if stage == "prior" or not is_given]
                    over = _sized(sizes, over, budget, stages, processes.count)
                settings = run.adopt(preset, overrides, args.data, True, over)
                init.record(run)
                sizes.note(settings)
        yield Recipe(settings, run, say, budget, args.stages)


def _sized(
    sizes: OpenSizes, over: dict[str, Any], seconds: float, stages: Sequence[str], processes: int
) -> dict[str, Any]:
    """`over` with sizes that suit the time on this machine, where they are open; prints in a line what it buys."""
    from bld.training.config import overlaid
    from bld.training.settings import tree_of

    bought = sizes.for_time(seconds, stages, processes)
    if bought is None:
        if sizes.settings.sizes_by_budget:
            say(f"{sizes.run.path} goes on with the sizes that it began with, whatever time it has now.")
        return over
    say(bought.sentence(sizes.settings))
    return overlaid(over, tree_of(bought.sizes))


def _refuse_out_as_data(out: Path, location: str) -> None:
    """The run's own pictures must not become images to train on."""
    data = Path(location).expanduser()
    if data.is_dir() and out.expanduser().resolve().is_relative_to(data.resolve()):
        raise SettingError(f"--out {out} lies inside the images of {location}: choose a folder beside them.")


# -- sampling ---------------------------------------------------------------------------------------------


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that decides how images are sampled."""
    parser.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone (default 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the run's)")
    parser.add_argument("--temperature", type=float, help="τ: lower is safer and less diverse (default: the run's)")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="1 + ω: how strongly the class is followed or, without classes, a weaker network avoided; 1 is off",
    )
    parser.add_argument(
        "--classes",
        metavar="A,B,…",
        help="names or numbers, taken in turn; 'all' for every class, 'none' to leave it open (default: all where "
        "images are made anew, none where parts of one are)",
    )
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what the images show; several are taken in turn"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts, a line each, taken in turn")
    parser.add_argument("--condition", type=Path, metavar="FILE", help="vectors (n, V) as .npy, taken in turn")
    parser.add_argument(
        "--final",
        choices=["threshold", "draw", "z1"],
        default="threshold",
        help="how sampling ends: the predicted z_0 thresholded (default) or drawn, or z_1, as Algorithm 2 prints it",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images made at a time (default 64)")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --precision."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bf16"],
        default="auto",
        help="auto: bf16 where it is native",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile: pays off for many images")


def load_pipeline(args: argparse.Namespace) -> BinaryLatentDiffusionPipeline:
    """The run's pipeline on the asked device; no steps are refused, which a note beside images would take for all."""
    steps = getattr(args, "steps", None)  # which not every command has
    if steps is not None and steps < 1:
        raise SettingError(f"--steps is at least 1, not {steps}: leave it out for the run's own.")
    from bld.pipeline import BinaryLatentDiffusionPipeline

    pipe = BinaryLatentDiffusionPipeline.from_pretrained(args.run_folder).to(device_from(args))
    return pipe.compile() if args.compile else pipe


def device_from(args: argparse.Namespace) -> torch.device:
    """The device asked for, a GPU if there is one, else the CPU."""
    import torch

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name).tolist()  # not of "meta", which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError(f"The device '{name}' cannot be used here: try --device cpu.") from error
    return torch.device(name)


@contextlib.contextmanager
def precision(args: argparse.Namespace, device: torch.device) -> Iterator[None]:
    """Autocast as --precision says."""
    import torch

    from bld.runtime.precision import allow_tf32

    is_bf16 = precision_of(args.precision, device) == "bf16"
    allow_tf32(device, is_bf16)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        yield


def precision_of(choice: str, device: torch.device) -> str:
    """What --precision comes to on the device: float32 or bf16."""
    from bld.training.accelerator import autocast_dtype

    return "bf16" if autocast_dtype(choice, device) == "bf16" else "float32"


def size_of_images(data: str) -> int:
    """The shorter side of the images, in pixels: the smallest of up to 16 of them; says so where these differ."""
    sides = sorted(set(look_at(data).sides))
    if len(sides) > 1:
        say(f"{data} has images of {sides[0]} to {sides[-1]} pixels: all are taken at {sides[0]} (--image-size).")
    return sides[0]


def tell_left_out(images: ImageSet, tell: Callable[[str], None] = say) -> None:
    """Say which files of a source were not used, and how many of its images cannot be read."""
    for note in images.source.notes:
        tell(note)
    if images.skipped:
        tell(
            f"{len(images.skipped):,} of {len(images.source):,} images of {images.location} cannot be read and are "
            f"left out; the first is {images.skipped[0][0]}."
        )


def labels_from(
    args: argparse.Namespace, pipe: BinaryLatentDiffusionPipeline, count: int, each: bool = False
) -> list[Any] | None:
    """One class per image, the asked ones in turn; None leaves the class open.

    Args:
        args: of the command, with `classes`.
        pipe: whose classes they are.
        count: number of images.
        each: whether every class is taken in turn where none is asked for.

    Raises:
        SettingError: where the prior has no classes and all are asked for, or no class is named.
    """
    from bld.pipeline import class_names

    known = pipe.prior.config.num_classes
    if args.classes is None:
        return [i % known for i in range(count)] if each and known else None
    if args.classes == "none" and "none" not in pipe.classes:
        return None
    names: Sequence[Any] = class_names(args.classes, pipe.classes)
    if args.classes == "all" and "all" not in pipe.classes:
        names = list(range(known))
        if not names:
            raise SettingError("--classes was given, but this prior has no classes.")
    if not names:
        raise SettingError("--classes names no class: leave it out, or name some.")
    return [names[i % len(names)] for i in range(count)]


class Asked:
    """What each image is conditioned on, as the arguments say: classes, prompts or vectors, taken in turn.

    Args:
        args: of the command.
        pipe: what makes the images.
        count: number of images.
        each: whether every class is taken in turn where nothing is asked for, as `in_turn` then says.

    Raises:
        SettingError: where several of these are asked for, or an empty prompt.
        DataError: for prompts or vectors that cannot be read.
    """

    def __init__(self, args: argparse.Namespace, pipe: BinaryLatentDiffusionPipeline, count: int, each: bool = False):
        names = ("classes", "prompt", "prompts", "condition")
        given = [f"--{name}" for name in names if getattr(args, name) is not None]
        if len(given) > 1 and set(given) != {"--prompt", "--prompts"}:
            raise SettingError(f"{' and '.join(given)} were given: images are conditioned on one of them.")
        self.prompts = [*(args.prompt or []), *(lines_of(args.prompts) if args.prompts else [])]
        self.labels = labels_from(args, pipe, count, each and not given)
        self.in_turn = self.labels is not None and self.labels[: len(pipe.classes)] == list(range(len(pipe.classes)))
        self._vectors: Any = None
        if not all(text.strip() for text in self.prompts):
            raise SettingError("An empty --prompt was given: leave --prompt out for images of no prompt.")
        if self.prompts:
            self._vectors = pipe.encode_prompt(self.prompts)  # once, not in each batch
        elif args.condition is not None:
            self._vectors = vectors_of(args.condition)

    def of(self, images: Sequence[int]) -> dict[str, Any]:
        """The pipeline's arguments for the images of these numbers."""
        if self._vectors is not None:
            return {"condition": self._vectors[[i % len(self._vectors) for i in images]]}
        return {"class_labels": None if self.labels is None else [self.labels[i] for i in images]}

    def settings(self) -> dict[str, Any]:
        """What the note of settings says of prompts or vectors; nothing where there are none."""
        if self._vectors is None:
            return {}
        import hashlib

        import numpy as np

        digest = hashlib.sha256(np.ascontiguousarray(np.asarray(self._vectors)).tobytes()).hexdigest()[:16]
        return {"prompts": self.prompts} if self.prompts else {"condition": digest}
