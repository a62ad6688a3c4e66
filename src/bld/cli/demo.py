"""Train on the 1,797 handwritten digits that scikit-learn carries, and measure the result: five minutes anywhere."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bld.cli.common import duration, say

HELP = "train on embedded handwritten digits and measure, in five minutes"
JUDGED = 500
STEPS, TEMPERATURE = 16, 0.9
DIGITS, DIGIT_SIZE = [str(digit) for digit in range(10)], 8  # what the judge knows: classes, pixels of a side
TRAINING_SHARE = 0.9  # of the time, the rest being for start, judge and report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and key=value overrides."""
    parser.add_argument(
        "--out", metavar="RUN", type=Path, default=Path("demo"), help="folder of the run (default demo)"
    )
    parser.add_argument("--budget", metavar="TIME", default="5m", help="time from start to end (default 5m)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="single settings, for example seed=1")


def run(args: argparse.Namespace) -> None:
    """Train, report, judge."""
    from bld.report.page import write_report
    from bld.training.recipe import Recipe
    from bld.training.run_folder import RunFolder
    from bld.training.run_images import refuse_other_data

    started, seconds = time.monotonic(), TRAINING_SHARE * duration(args.budget)
    folder = RunFolder(args.out)
    with folder.locked():
        preset = None if folder.has_settings() else "digits"
        settings = folder.adopt(preset, args.settings, "digits", check=lambda asked: refuse_other_data(folder, asked))
        recipe = Recipe(settings, folder, say, seconds)
        recipe.train()
        _tell_what_the_time_cut(recipe, args.budget)
        path = write_report(folder, seed=settings.seed, say=say)  # which is there whatever the judge meets
        _judge(recipe)
    say(f"Done in {(time.monotonic() - started) / 60:.1f} minutes. Open {path} to see the result.")


def _tell_what_the_time_cut(recipe, budget: str) -> None:  # type: ignore[no-untyped-def]
    """Say which stages the time ended before their steps: what is printed next is then of this machine, too."""
    progress, settings = recipe.run.progress(), recipe.settings
    for stage, asked in (("tokenizer", settings.tokenizer_training), ("prior", settings.prior_training)):
        done = progress[stage]["steps"]
        if done < asked.steps:
            say(
                f"The {stage} has {done:,} of its {asked.steps:,} steps, for the time was up: a faster machine, or one "
                f"with nothing else to do, makes more in {budget}, and so does a longer --budget."
            )


def _judge(recipe) -> None:  # type: ignore[no-untyped-def]
    """Print both metrics: how many samples are recognised, and how well held-out images are reconstructed."""
    from bld.evaluation.metrics.reconstruction import score_reconstructions
    from bld.pipeline import BinaryLatentDiffusionPipeline

    pipe = BinaryLatentDiffusionPipeline.from_pretrained(recipe.run.path)
    if pipe.classes == DIGITS and pipe.image_size == DIGIT_SIZE:
        _judge_samples(pipe, recipe.settings.seed)
    score = score_reconstructions(pipe.tokenizer, recipe.images()[1])
    drawn = "" if score.drawn_psnr_mean is None else f", {score.drawn_psnr_mean:.1f} dB from drawn codes"
    say(
        f"Held-out reconstructions: {score.psnr_mean:.1f} dB PSNR{drawn} ({score.images} images, "
        f"{pipe.tokenizer.config.code_bytes} bytes each)."
    )


def _judge_samples(pipe, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Print how many samples are recognised as their class."""
    from bld.evaluation.digit_accuracy import digit_accuracy

    labels = [i % len(DIGITS) for i in range(JUDGED)]
    steps = min(STEPS, pipe.diffusion.steps) if pipe.diffusion.may_skip else pipe.diffusion.steps
    out = pipe(
        class_labels=labels,
        num_inference_steps=steps,
        temperature=TEMPERATURE,
        guidance_scale=1.0,
        generator=seed,
        output_type="np",
    )
    accuracy = digit_accuracy(out.images.mean(-1), labels)
    say(
        f"Samples recognised as their class by an SVM trained on the real digits: {100 * accuracy:.1f}% "
        f"of {JUDGED} (τ = {TEMPERATURE}, {steps} steps, no guidance)."
    )
