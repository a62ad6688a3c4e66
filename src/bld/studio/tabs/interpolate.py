"""Pictures between two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from bld.errors import SettingError
from bld.seeding import keyed_generator, keyed_permutation
from bld.studio.controls import Controls, End, buttons, explain, output_area, slider
from bld.studio.export import described, png
from bld.studio.handlers import run_on_click
from bld.studio.jobs import Progress, Report, Work
from bld.studio.made import Made, Picture
from bld.studio.model import Model
from bld.studio.tabs.base import Tab
from bld.studio.tasks import Origin, Sampling, code_of, needs_bits, number, square, steps_of, whole

MOST_FRAMES = 16
SEED = 0  # of the order of the bits, and of the noise


def interpolate(
    model: Model,
    ends: Sequence[Origin],
    frames: int,
    strength: float,
    report: Report,
    between: Sampling | None = None,
) -> Made:
    """A strip of pictures from one to the other.

    Between codes of bits there is no line: one after another, in an order that is always the same, the bits that differ
    are taken from the other end. A strength above 0 then noises each mixture, most in the middle and not at all at the
    ends, and denoises it with the same noise for all, so that what lies between is a picture of the model's own kind.

    Args:
        ends: both ends, an upload each, or how its picture is drawn.
        frames: pictures of the strip, both ends included, 3 to 16.
        strength: 0 to 1, of the noise in the middle; 0 shows the bare mixtures.
        report: called after each step.
        between: with whose steps, temperature and posterior mixtures are denoised, of any class; None takes the first
            end that is drawn, or the run's where neither is.

    Raises:
        SettingError: for numbers out of range, for a model whose codes are no bits, and for a strength above 0 where
            the prior is no Bernoulli diffusion.
    """
    frames = whole(frames, "number of pictures", 3, MOST_FRAMES)
    strength = number(strength, "strength", 0, 1)
    needs_bits(model)
    if strength and not model.is_bernoulli:
        raise SettingError("Only a Bernoulli prior can denoise mixtures: set the strength to 0.")
    calls = [end.call(model, 1) for end in ends if isinstance(end, Sampling)]
    total = sum(steps_of(model, call) for call in calls) + frames
    codes, done = [], 0
    for end in ends:
        codes.append(code_of(model, end, report, done, total))
        done += steps_of(model, end.call(model, 1)) if isinstance(end, Sampling) else 0
    mixtures = path_between(codes[0], codes[1], frames, SEED)
    between = between or next((end for end in ends if isinstance(end, Sampling)), Sampling())
    call, pipe = between.call(model, 1), between.pipe(model)
    shares = [i / (frames - 1) for i in range(frames)]
    for i, share in enumerate(shares):
        own = strength * 4 * share * (1 - share)
        so_far = Progress(done + i, total)
        if own > 0:
            mixtures[i] = pipe.vary(
                mixtures[i : i + 1],
                own,
                num_inference_steps=call["num_inference_steps"],
                temperature=call["temperature"],
                generator=[keyed_generator(SEED, "interpolate", 1)],
                output_type="latent",
                callback_on_step_end=lambda *_, so_far=so_far: report(so_far),
            ).codes[0]
        report(Progress(done + i + 1, total))
    pictures = [
        Picture(image, f"between-{i:02d}", f"{share:.0%}", f"{share:.0%} of the way from the first to the second")
        for i, (image, share) in enumerate(zip(pipe.decode(mixtures), shares, strict=True))
    ]
    differing, bits = int((codes[0] != codes[1]).sum()), codes[0].numel()
    facts = [("Bits in which the ends differ", f"{differing:,} of {bits:,} ({differing / bits:.0%})")]
    how = "bld.studio.tabs.interpolate.interpolate with these ends"
    record = described(model, "interpolate", how, {}, posterior=between.posterior)
    said = [end.call(model, 1) if isinstance(end, Sampling) else f"end{i}.png" for i, end in enumerate(ends)]
    files = {f"end{i}.png": png(square(model, end)) for i, end in enumerate(ends) if isinstance(end, Image.Image)}
    denoised = {name: call[name] for name in ("num_inference_steps", "temperature")}
    settings = {**record, "ends": said, "frames": frames, "strength": strength, "seed": SEED, "between": denoised}
    return Made([("", pictures)], settings, facts, files=files, in_a_row=True)


def path_between(first: Tensor, second: Tensor, frames: int, seed: int) -> Tensor:
    """Bits (h, w, c) twice → (frames, h, w, c), from the first to the second.

    Frame i has taken over the share i/(frames - 1) of the bits that differ. Which come first is a permutation keyed by
    the seed; a bit that has been taken over stays so.
    """
    a, b = first.flatten(), second.flatten()
    order = torch.from_numpy(keyed_permutation(seed, "interpolate", 0, a.numel()))
    differing = order[(a != b)[order]]
    path = a.repeat(frames, 1)
    for i in range(frames):
        taken = differing[: round(len(differing) * i / (frames - 1))]
        path[i, taken] = b[taken]
    return path.view(frames, *first.shape)


def build(model: Model) -> None:
    """The tab that goes from one picture to another."""
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            explain(
                "Between two codes of bits there is no line: one after another the bits that differ are taken from the "
                "second, and each mixture is noised a little and denoised, so that it becomes a picture again."
            )
            first, second = End(model, "First", 0), End(model, "Second", 1)
            frames = slider(3, MOST_FRAMES, 8, step=1, label="Pictures", info="Both ends included.")
            strength = slider(
                0, 1, 0.5 if model.is_bernoulli else 0, step=0.05, label="Denoising", interactive=model.is_bernoulli,
                info="0 shows the bare mixtures; the more, the further the middle may leave them.",
            )  # fmt: skip
            controls = Controls(model, seed=False, classes=False, guidance=False)
            run, stop = buttons("Interpolate", "interpolate")
        output = output_area("The strip will stand here.")

    def work(frames: float, strength: float, *values: Any) -> Work[Made]:
        size = len(first.inputs)
        rest = values[2 * size :]
        ends = [end.origin(own, rest, controls) for end, own in ((first, values[:size]), (second, values[size:]))]
        return lambda report: interpolate(model, ends, int(frames), strength, report, controls.sampling(rest))

    inputs = [frames, strength, *first.inputs, *second.inputs, *controls.inputs]
    run_on_click(model, run, stop, inputs, output, work, "interpolated")


TAB = Tab("Interpolate", 4, build)
