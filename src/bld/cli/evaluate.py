"""Judge a run (or images that another program made) and write every metric with all that changes it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bld.cli.common import (
    add_device_arguments,
    device_from,
    load_pipeline,
    precision,
    say,
    size_of_images,
    tell_left_out,
)
from bld.cli.outputs import refuse_foreign
from bld.cli.words import refuse_other_ending, where
from bld.errors import SettingError

if TYPE_CHECKING:
    from bld.data import ImageSet
    from bld.evaluation.load_run import OpenedRun
    from bld.evaluation.request import Request
    from bld.pipeline import BinaryLatentDiffusionPipeline
    from bld.runtime.distributed import Processes

HELP = "Fréchet distance, precision, recall, likelihood, reconstruction …, with everything that moves them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run or the samples, the reference, the metrics, and how samples are made."""
    parser.add_argument(
        "run_folder", metavar="RUN", nargs="?", type=where, help="a run; may be left out with --samples"
    )
    parser.add_argument("--samples", metavar="WHERE", help="judge these images (folder, zip, tar) in place of a run's")
    parser.add_argument(
        "--data",
        metavar="WHERE",
        help="real images (default: the run's own, the training part for samples, the held-out part for the rest)",
    )
    parser.add_argument(
        "--metrics",
        default="fd,kid,precision,recall",
        metavar="A,B,…",
        help="fd, kid, is, precision, recall, diversity, cas, psnr, ssim, lpips, rfd, bits",
    )
    parser.add_argument(
        "--features",
        type=where,
        default="inception",
        metavar="WHICH",
        help="inception (default), dinov2, a TorchScript file.pt, or a folder of bld train-features",
    )
    parser.add_argument(
        "--num",
        "--num-images",
        type=int,
        default=10_000,
        help="samples (default 10,000; the paper takes 50,000); "
        "torchrun mistakes --num for an option of its own: give it --num-images",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the run's)")
    parser.add_argument("--temperature", type=float, help="τ (default: the run's)")
    parser.add_argument("--guidance-scale", type=float, help="1 + ω (default: the run's)")
    parser.add_argument(
        "--classes",
        default="",
        metavar="A,B,…",
        help="classes of the samples in turn; 'all' for every one, 'none' for none (default: as the images have them)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time; changes no metric")
    parser.add_argument("--cas-network", default="resnet50", help="resnet50 (default) or small")
    parser.add_argument("--cas-epochs", type=int, default=30, help="how often cas's classifier sees each sample")
    parser.add_argument("--image-size", type=int, help="pixels at which --samples are judged (default: the run's)")
    parser.add_argument("--resize", action="store_true", help="resize images of --samples that have another size")
    parser.add_argument(
        "--out",
        type=Path,
        help="where the metrics go (default RUN/evaluation.json; of --samples RUN/evaluation-of-samples.json)",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Judge, print, write."""
    from bld.evaluation import evaluate
    from bld.evaluation import record as recording
    from bld.evaluation.features import load_extractor
    from bld.evaluation.metrics import SAMPLE_METRICS
    from bld.io.files import read_json, write_json
    from bld.runtime.distributed import launched

    if not args.run_folder and not args.samples:
        raise SettingError("Nothing to judge: name a RUN, or images with --samples.")
    request = evaluate.Request(
        metrics=tuple(word for word in args.metrics.split(",") if word), num=args.num, seed=args.seed, steps=args.steps,
        temperature=args.temperature, guidance_scale=args.guidance_scale, classes=args.classes,
        batch_size=args.batch_size, cas_epochs=args.cas_epochs, cas_network=args.cas_network,
        code_draws=_code_draws(args.run_folder),
    )  # fmt: skip
    refuse_other_ending(args.out, ".json")
    name = "evaluation-of-samples.json" if args.samples else "evaluation.json"
    out = args.out or _folder(args.run_folder) / name
    refuse_foreign([out])
    processes = launched()  # which gives each process its device
    device = device_from(args)
    featured = {*SAMPLE_METRICS, "rfd"} & set(request.metrics)
    extractor = load_extractor(args.features, device) if featured else None
    with precision(args, device):
        given = args.samples is not None
        record = _given(args, request, extractor, out.parent) if given else _run(args, request, extractor, processes)
    if processes.is_main:
        for line in recording.lines(record["figures"], extractor):
            say(line)
        record, lost = recording.joined(record, read_json(out) if out.is_file() else None)
        if lost:
            say(f"{out} no longer holds {', '.join(lost)}, which were measured of or with something else.")
        write_json(out, record)
        say(f"Written: {out}")
    processes.wait()


def _folder(run: str | None) -> Path:
    """Where all goes by default: the run; for a model of the hub, which a folder of its name would hide, another."""
    return Path(run or "") if run is None or Path(run).is_dir() else Path("evaluation") / Path(run).name


def _run(args: argparse.Namespace, request: Any, extractor: Any, processes: Processes) -> dict[str, Any]:
    from bld.evaluation import evaluate
    from bld.evaluation import record as recording
    from bld.evaluation.metrics.distances import too_few_to_say
    from bld.evaluation.sample_conditions import asked_for
    from bld.pipeline import class_names
    from bld.training.origins import seen_before
    from bld.training.run_folder import RunFolder

    folder = Path(args.run_folder)
    pipeline = load_pipeline(args)
    _refuse_other_size(args.image_size, pipeline.image_size)
    quiet = say if processes.is_main else (lambda _: None)
    reference, unseen, opened = _images(args, folder, quiet, _without_labels(request, pipeline))
    are_unseen = True
    if args.data:
        reference, unseen, are_unseen = _told_apart(folder, reference, quiet)
    seen = seen_before(RunFolder(folder), unseen, are_its_own=not args.data)
    for remark in seen:
        quiet(remark)
    labelled = {"bits", "cas"} & set(request.metrics)
    for images in (reference, unseen):
        _meet(images, pipeline.classes, needed=", ".join(sorted(labelled)))
    asked = asked_for(pipeline, class_names(args.classes, pipeline.classes), reference, opened)
    rebuilt = min(request.reconstructed, len(unseen))
    for warning in too_few_to_say(len(reference), request.metrics, extractor, request.num, rebuilt):
        quiet(warning)
    where = folder / "evaluation" if folder.is_dir() else _folder(args.run_folder)
    counts: dict[str, dict[str, int]] = {}
    metrics = evaluate.evaluate_run(
        pipeline, reference, unseen, request, extractor, where, quiet, processes, asked, counts
    )
    made = {**evaluate.made_by(pipeline, request, asked), "format": "uint8 straight from the model, no file"}
    return recording.record(metrics, request, extractor, reference, unseen, made, counts, are_unseen and not seen)


def _given(args: argparse.Namespace, request: Any, extractor: Any, folder: Path) -> dict[str, Any]:
    from bld.data import ImageSet
    from bld.evaluation import evaluate
    from bld.evaluation import record as recording
    from bld.evaluation.metrics.distances import too_few_to_say

    if not args.data and not args.run_folder:
        raise SettingError("Samples are judged against real images: name them with --data.")
    reference = _images(args, Path(args.run_folder) if args.run_folder else None, say)[0]
    size = reference.preprocessing.image_size
    prep, most = reference.preprocessing.of_centres(), reference.source.max_pixels
    given = ImageSet.open(args.samples, prep, labels="none", max_pixels=most)
    tell_left_out(given)
    if not args.resize:
        evaluate.refuse_other_size(given, size)
    for warning in too_few_to_say(len(reference), request.metrics, extractor, len(given)):
        say(warning)
    metrics = evaluate.evaluate_samples(given, reference, request, extractor, folder / "evaluation")
    counts = {name: {"samples": len(given)} for name in metrics}
    judged = replace(request, num=len(given))
    return recording.record(metrics, judged, extractor, reference, None, recording.describe_images(given), counts)


def _meet(images: ImageSet, classes: list[str], needed: str) -> None:
    """Number the images' classes as the prior does; where it does not know one of them, they count as none."""
    from bld.data import meet_by_name

    unknown = meet_by_name(images.source, classes) if classes and images.classes else []
    if unknown and needed:
        raise SettingError(
            f"{images.location} has classes that the prior does not know ({', '.join(unknown[:5])}): name them as in "
            f"the training ({', '.join(classes[:5])}{' …' if len(classes) > 5 else ''}), or leave out {needed}."
        )
    images.__dict__.pop("labels", None)  # which was worked out of the old numbers


def _without_labels(request: Request, pipeline: BinaryLatentDiffusionPipeline) -> str:
    """What to do where the real images have no labels that can be used; "" where nothing of the request needs them."""
    if not pipeline.prior.config.num_classes:
        return ""
    needed = [name for name in ("bits", "cas") if name in request.metrics]
    if needed:
        return f"leave out {' and '.join(needed)}"
    return "say what samples show with --classes" if request.of_samples and not request.classes else ""


def _images(
    args: argparse.Namespace, folder: Path | None, tell: Callable[[str], None], without_labels: str = ""
) -> tuple[ImageSet, ImageSet, OpenedRun | None]:
    """(reference, unseen, the run): of --data all for both; of a run's own images its training and held-out part."""
    from bld.data import ImageSet, Preprocessing
    from bld.data.decoding import MAX_PIXELS
    from bld.data.tables import TableError
    from bld.evaluation.load_run import open_run
    from bld.training.init_from import Origin
    from bld.training.run_folder import RunFolder

    is_run = folder is not None and (folder / "config.yaml").is_file()
    if args.data:
        most = MAX_PIXELS
        if args.run_folder:
            origin = Origin.find(args.run_folder)
            prep, most = origin.preprocessing(), origin.max_pixels()
            prep = replace(prep.of_centres(), image_size=args.image_size or prep.image_size)
        else:
            prep = Preprocessing(args.image_size or size_of_images(args.data))
        try:
            images = ImageSet.open(args.data, prep, max_pixels=most)
        except TableError as error:
            if without_labels:
                raise SettingError(f"{error.found}: correct it, or {without_labels}.") from error
            tell(f"{error.found}: its classes are not used.")
            images = ImageSet.open(args.data, prep, labels="none", max_pixels=most)
        tell_left_out(images, tell)
        return images, images, None
    if not is_run or folder is None:
        raise SettingError(f"{folder} does not know its images: name real ones with --data.")
    import torch

    opened = open_run(RunFolder(folder), torch.device("cpu"))
    if opened.train is None or opened.held_out is None:
        raise SettingError(
            f"The run's images cannot be opened ({opened.missing.rstrip('.')}): name others with --data."
        )
    if opened.remark:
        tell(opened.remark)
    _refuse_other_size(args.image_size, opened.train.preprocessing.image_size)
    return opened.train, opened.held_out, opened


def _told_apart(folder: Path, images: ImageSet, tell: Callable[[str], None]) -> tuple[ImageSet, ImageSet, bool]:
    """(reference, what is measured in place of unseen images, whether it is unseen) of the images of --data."""
    from bld.training.known_images import known_images
    from bld.training.run_folder import RunFolder

    known = known_images(RunFolder(folder), images)
    if known.train is not None and known.held_out is not None:
        tell(
            f"{images.location} holds images that {folder} was trained on: of them its {len(known.held_out):,} "
            f"held-out ones are measured, and samples are compared with the other {len(known.train):,}."
        )
        return known.train, known.held_out, True
    if known.example:
        tell(
            f"{images.location} holds images that {folder} was trained on ({known.example} is one), so that what is "
            "measured of them is not of unseen images, and is recorded so: leave out --data to measure the run's "
            "held-out images, or name others."
        )
    return images, images, not known.example


def _refuse_other_size(asked: int | None, size: int) -> None:
    """A model's own images are judged as it makes and sees them: at another size they would lie far from the others."""
    if asked not in (None, size):
        raise SettingError(
            f"--image-size {asked} is another size than the model's, {size}: leave it out, or judge at it with "
            "--samples and --data."
        )


def _code_draws(run_folder: str | None) -> int:
    """Of each image's code: 0, the most probable one alone, for a prior that was trained on those."""
    from bld.training.held_out_codes import CODE_DRAWS
    from bld.training.run_folder import RunFolder

    run = RunFolder(Path(run_folder)) if run_folder else None
    return 0 if run is not None and run.has_settings() and run.settings().codes.draws == 0 else CODE_DRAWS
