"""What the studio makes, one function per tab: settings and pictures in, pictures and the settings that made them out.

Each function is handed the model and `report`, which it calls after every step of the sampling (and which may raise, to
stop it).  Bad settings are refused with a `SettingError` before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bld.codes import pack
from bld.data import psnr, to_pil, to_unit
from bld.data.inputs import network_views
from bld.errors import SettingError
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.seeding import keyed_generator, keyed_permutation
from bld.studio.export import described, png
from bld.studio.jobs import Progress, Report
from bld.studio.made import Made, Picture
from bld.studio.model import Model

ANY: Literal["any"] = "any"
EACH: Literal["each"] = "each"
LARGEST_SEED = 2**53 - 1  # the whole numbers that a browser can write
PREVIEWS = 12  # decoded states of one sampling
MOST_FRAMES = 16
MOST_WALKS = 8
MOST_TRIED = 256  # bits of a position whose effect is measured
SHOWN_BITS = 8
DECODED_AT_ONCE = 64

Which = int | Literal["any", "each"]
Label = int | list[int] | None


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    seed: picture i depends on it and on i alone.  steps: None takes the run's.  which: a class; ANY leaves it open,
    EACH takes them in turn.  posterior: None takes the run's.  prompt: for models that take prompts.
    """

    seed: int = 0
    steps: int | None = None
    temperature: float | None = None
    guidance: float | None = None
    which: Which = ANY
    posterior: str | None = None
    prompt: str = ""

    def pipe(self, model: Model) -> BinaryLatentDiffusionPipeline:
        """The model's pipeline, sampling with this posterior."""
        if self.posterior in (None, model.posterior):
            return model.pipe
        if self.posterior not in ("exact", "plugin"):
            raise SettingError(f"The posterior is exact or plugin, not '{self.posterior}'.")
        return model.pipe.with_posterior(self.posterior)  # type: ignore[arg-type]

    def labels(self, model: Model, count: int) -> Label:
        """What a pipeline calls class_labels, for so many pictures."""
        if self.which == ANY:
            return None
        if self.which == EACH:
            return [i % max(1, len(model.classes)) for i in range(count)]
        return int(self.which)

    def call(self, model: Model, count: int) -> dict[str, Any]:
        """The arguments of `pipe(…)` that make `count` pictures; SettingError for what is out of range."""
        defaults = model.pipe.index.sampling
        steps = model.default_steps if self.steps is None else whole(self.steps, "steps", 1, model.steps)
        temperature = number(
            defaults.temperature if self.temperature is None else self.temperature, "temperature", 0.01, 10
        )
        guidance = number(defaults.guidance_scale if self.guidance is None else self.guidance, "guidance", 0, 20)
        call = {
            "num_images": whole(count, "number of pictures", 1, model.most_images),
            "class_labels": self.labels(model, count),
            "num_inference_steps": steps if model.pipe.diffusion.may_skip else None,
            "temperature": temperature,
            "guidance_scale": guidance,
            "generator": whole(self.seed, "seed", 0, LARGEST_SEED),
        }
        return {**call, "prompt": self.prompt} if model.takes_prompts and self.prompt else call

    def captions(self, model: Model, count: int) -> list[str]:
        """The class of each picture, or its number."""
        labels = self.labels(model, count)
        if labels is None:
            return [f"no. {i}" for i in range(count)]
        labels = labels if isinstance(labels, list) else [labels] * count
        return [model.classes[label] for label in labels]


Origin = Image.Image | Sampling


def number(value: float, name: str, least: float, most: float) -> float:
    """The value, if it lies in the range."""
    if not isinstance(value, int | float) or not least <= value <= most:  # also what is not a number
        raise SettingError(f"The {name} lies between {least:g} and {most:g}, not at {value}.")
    return float(value)


def whole(value: float, name: str, least: int, most: int) -> int:
    """The value, if it is a whole number in the range."""
    if not isinstance(value, int | float) or not least <= value <= most or value != int(value):
        raise SettingError(f"The {name} is a whole number from {least} to {most}, not {value}.")
    return int(value)


# -- generate ---------------------------------------------------------------------------------------------


def generate(model: Model, sampling: Sampling, count: int, report: Report) -> Made:
    """`count` pictures of a seed, as `pipe(…)` and `bld sample` make them."""
    call, pipe = sampling.call(model, count), sampling.pipe(model)
    watch = _Watch(report, _steps(model, call))
    images = pipe(**call, callback_on_step_end=watch, batch_size=count).images
    settings = described(model, "generate", "pipe(**call).images", call, posterior=sampling.posterior)
    pictures = _numbered(images, f"seed{sampling.seed}", sampling.captions(model, count))
    return Made([("", pictures)], settings, history=watch.history)


def compare(model: Model, columns: Sequence[Sampling], count: int, report: Report) -> Made:
    """The same seeds under several settings, a group each."""
    calls = [(sampling.call(model, count), sampling.pipe(model)) for sampling in columns]
    total = sum(_steps(model, call) for call, _ in calls)
    groups, records, done = [], [], 0
    for letter, sampling, (call, pipe) in zip("ABCDEF", columns, calls, strict=False):
        watch = _Watch(report, _steps(model, call), done, total)
        images = pipe(**call, callback_on_step_end=watch, batch_size=count).images
        done += _steps(model, call)
        words = [
            f"{_steps(model, call)} steps",
            f"τ {call['temperature']:g}",
            *([f"guidance {call['guidance_scale']:g}"] if model.classes else []),
            *([sampling.posterior or model.posterior or ""] if model.is_bernoulli else []),
        ]
        name = f"{letter}-seed{sampling.seed}"
        groups.append((f"{letter}: {', '.join(words)}", _numbered(images, name, sampling.captions(model, count))))
        records.append({"column": letter, "posterior": sampling.posterior or model.posterior, "call": call})
    settings = described(model, "compare", "one pipe.with_posterior(posterior)(**call).images per column", {})
    return Made(groups, {**settings, "columns": records})


# -- inpaint ----------------------------------------------------------------------------------------------


def inpaint(
    model: Model, picture: Image.Image, mask: Image.Image, sampling: Sampling, count: int, walks: int, report: Report
) -> Made:
    """Fill the white part of the mask `count` times.  picture: any size, seen as `square` shows it; mask: as large."""
    view = square(model, picture)
    walks = whole(walks, "number of walks", 1, MOST_WALKS)
    call, pipe = sampling.call(model, count), sampling.pipe(model)
    if walks > 1:
        call["resample"] = walks
    if mask.size != view.size:
        raise SettingError(f"The mask is {mask.size} pixels and the picture {view.size}: paint it again.")
    mask = mask.convert("L").point(lambda value: 255 if value > 127 else 0)
    if mask.getbbox() is None:
        raise SettingError("Nothing is marked: brush over the part of the picture that is to be filled.")
    watch = _Watch(report, _steps(model, call), over=(view, mask))
    images = pipe.inpaint(view, mask, **call, callback_on_step_end=watch, batch_size=count).images
    record = described(
        model, "inpaint", 'pipe.inpaint(Image.open("picture.png"), Image.open("mask.png"), **call).images', call,
        posterior=sampling.posterior,
    )  # fmt: skip
    own = Picture(view, "picture", "the picture", "The picture as the model sees it")
    hole = Picture(hatched(view, mask), "marked", "what is filled", "The picture with the part to be filled hatched")
    fillings = _numbered(images, f"filled-seed{sampling.seed}", [f"no. {i}" for i in range(count)])
    files = {"picture.png": png(view), "mask.png": png(mask)}
    return Made([("", [own, hole]), ("Fillings", fillings)], record, history=watch.history, files=files)


def square(model: Model, picture: Image.Image) -> Image.Image:
    """What the model sees of a picture: its central square, upright, opaque, at the model's size."""
    return to_pil(network_views(picture, model.pipe.preprocessing))[0]


def hatched(view: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with what is white in the mask hatched in grey, enlarged where it is too small for stripes."""
    scale = max(1, 128 // view.width)
    size = (view.width * scale, view.height * scale)
    pixels = np.array(view.resize(size, Image.Resampling.NEAREST))
    inside = np.array(mask.resize(size, Image.Resampling.NEAREST)) > 127
    period = max(8, len(pixels) // 12)
    stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) % period < period // 2
    pixels[inside] = np.where(stripes[..., None], 118, 168)[inside]
    return Image.fromarray(pixels)


# -- reconstruct ------------------------------------------------------------------------------------------


def reconstruct(model: Model, picture: Image.Image, report: Report) -> Made:
    """A picture through its bits and back: what is lost, what the bits look like, how few they are."""
    view = network_views(picture, model.pipe.preprocessing)
    codes = model.pipe.encode(picture)
    again = to_unit(torch.from_numpy(np.array(model.pipe.decode(codes)[0])).permute(2, 0, 1)[None])
    report(Progress(1, 1))
    size, shape = model.pipe.image_size, model.pipe.prior.code_shape
    code_bytes, pixel_bytes = model.pipe.tokenizer.config.code_bytes, 3 * size**2
    width, height = picture.size
    facts = [
        ("PSNR", f"{float(psnr(view, again)):.2f} dB"),
        ("Code", f"{shape} = {code_bytes:,} bytes"),
        (f"Pixels the model sees, {size}×{size}", f"{pixel_bytes:,} bytes, {pixel_bytes / code_bytes:.3g}× the code"),
        (f"Upload, {width}×{height}", f"{3 * width * height:,} bytes of pixels"),
    ]
    pair = [
        Picture(to_pil(view)[0], "picture", "the picture", "The picture as the model sees it"),
        Picture(to_pil(again)[0], "reconstruction", "from its code", "The picture made again from its code"),
    ]
    groups, files = [("", pair)], {}
    if model.has_bits:
        caption = f"{shape.c} planes of {shape.h}×{shape.w}: one per bit, white is 1"
        groups.append(("Its bits", [Picture(bit_planes(codes[0]), "bits", caption, caption)]))
        files["code.bin"] = pack(codes)[0].tobytes()
    record = described(model, "reconstruct", "pipe.reconstruct(picture); code.bin: bld.codes.unpack", {})
    return Made(groups, {**record, "code_shape": list(shape), "psnr_db": float(psnr(view, again))}, facts, files=files)


def bit_planes(code: Tensor, scale: int | None = None, gap: int = 2) -> Image.Image:
    """Bits (h, w, c) as c black and white planes of h×w on one sheet, about as wide as high."""
    h, w, c = code.shape
    scale = scale or max(1, 48 // max(h, w))
    columns = max(d for d in range(1, c + 1) if c % d == 0 and d <= max(1, 2 * math.sqrt(c)))
    rows = c // columns
    sheet = np.full((rows * (h * scale + gap) + gap, columns * (w * scale + gap) + gap), 110, np.uint8)
    for plane in range(c):
        row, column = divmod(plane, columns)
        top, left = gap + row * (h * scale + gap), gap + column * (w * scale + gap)
        pixels = code[:, :, plane].numpy().astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + h * scale, left : left + w * scale] = 255 * pixels
    return Image.fromarray(sheet)


# -- interpolate ------------------------------------------------------------------------------------------


def interpolate(
    model: Model, ends: Sequence[Origin], frames: int, strength: float, report: Report, seed: int = 0
) -> Made:
    """A strip of pictures from one to the other; ends: an upload each, or how its picture is drawn.

    Between codes of bits there is no line: one after another, in an order keyed by the seed, the bits that differ are
    taken from the other end.  A strength above 0 then noises each mixture, most in the middle and not at all at the
    ends, and denoises it as the first end's settings say, with any class and the same noise for all, so that what lies
    between is a picture of the model's own kind.
    """
    frames = whole(frames, "number of pictures", 3, MOST_FRAMES)
    strength = number(strength, "strength", 0, 1)
    seed = whole(seed, "seed", 0, LARGEST_SEED)
    _needs_bits(model)
    if strength and not model.is_bernoulli:
        raise SettingError("Only a Bernoulli prior can denoise mixtures: set the strength to 0.")
    calls = [end.call(model, 1) for end in ends if isinstance(end, Sampling)]
    total = sum(_steps(model, call) for call in calls) + frames
    codes, done = [], 0
    for end in ends:
        codes.append(_code_of(model, end, report, done, total))
        done += _steps(model, end.call(model, 1)) if isinstance(end, Sampling) else 0
    mixtures = path_between(codes[0], codes[1], frames, seed)
    between = next((end for end in ends if isinstance(end, Sampling)), Sampling())
    call, pipe = between.call(model, 1), between.pipe(model)
    shares = [i / (frames - 1) for i in range(frames)]
    for i, share in enumerate(shares):
        own = strength * 4 * share * (1 - share)
        if own > 0:
            mixtures[i] = pipe.vary(
                mixtures[i : i + 1],
                own,
                num_inference_steps=call["num_inference_steps"],
                temperature=call["temperature"],
                generator=[keyed_generator(seed, "interpolate", 1)],
                output_type="latent",
            ).codes[0]
        report(Progress(done + i + 1, total))
    pictures = [
        Picture(image, f"between-{i:02d}", f"{share:.0%}", f"{share:.0%} of the way from the first to the second")
        for i, (image, share) in enumerate(zip(pipe.decode(mixtures), shares, strict=True))
    ]
    differing, bits = int((codes[0] != codes[1]).sum()), codes[0].numel()
    facts = [("Bits in which the ends differ", f"{differing:,} of {bits:,} ({differing / bits:.0%})")]
    how = "bld.studio.tasks.interpolate with these ends"
    record = described(model, "interpolate", how, {}, posterior=between.posterior)
    said = [end.call(model, 1) if isinstance(end, Sampling) else f"end{i}.png" for i, end in enumerate(ends)]
    files = {f"end{i}.png": png(square(model, end)) for i, end in enumerate(ends) if isinstance(end, Image.Image)}
    settings = {**record, "ends": said, "frames": frames, "strength": strength, "seed": seed}
    return Made([("", pictures)], settings, facts, files=files, in_a_row=True)


def path_between(first: Tensor, second: Tensor, frames: int, seed: int) -> Tensor:
    """Bits (h, w, c) twice → (frames, h, w, c): frame i has taken the share i/(frames - 1) of the differing bits over.

    Which bits come first is a permutation keyed by the seed; a bit that has been taken over stays so.
    """
    a, b = first.flatten(), second.flatten()
    order = torch.from_numpy(keyed_permutation(seed, "interpolate", 0, a.numel()))
    differing = order[(a != b)[order]]
    path = a.repeat(frames, 1)
    for i in range(frames):
        taken = differing[: round(len(differing) * i / (frames - 1))]
        path[i, taken] = b[taken]
    return path.view(frames, *first.shape)


# -- flip bits --------------------------------------------------------------------------------------------


def flip(model: Model, origin: Origin, row: int, column: int, bit: int, report: Report) -> Made:
    """What one bit of a code draws: the picture with it flipped, the difference, the strongest bits of its position.

    origin: an upload, or how its picture is drawn.  row, column, bit: counted from 1.
    """
    _needs_bits(model)
    shape = model.pipe.prior.code_shape
    i = whole(row, "row", 1, shape.h) - 1
    j = whole(column, "column", 1, shape.w) - 1
    k = whole(bit, "bit", 1, shape.c) - 1
    steps = _steps(model, origin.call(model, 1)) if isinstance(origin, Sampling) else 0
    tried = list(range(min(shape.c, MOST_TRIED)))
    code = _code_of(model, origin, report, total=steps + 1)
    flipped = code.repeat(1 + len(tried) + 1, 1, 1, 1)  # as it is, each bit of the position, the chosen one
    for n, one in enumerate([*tried, k]):
        flipped[1 + n, i, j, one] ^= 1
    parts = flipped.split(model.pipe.tokenizer.config.images_at_a_time(DECODED_AT_ONCE))
    images: list[Image.Image] = []
    for n, part in enumerate(parts):
        images += model.pipe.decode(part)
        report(Progress(steps + n + 1, steps + len(parts)))
    before, after = images[0], images[-1]
    effects = [effect(before, image) for image in images[1:-1]]
    ranked = sorted(tried, key=lambda one: -effects[one])
    where = f"row {row}, column {column}"
    main = [
        Picture(before, "before", "before", "The picture before the flip"),
        Picture(after, "after", f"bit {bit} flipped to {int(flipped[-1, i, j, k])}", f"Bit {bit} at {where} flipped"),
        Picture(difference(before, after), "difference", "difference", "How much each pixel changed: white is most"),
    ]
    strongest = [
        Picture(images[1 + one], f"bit{one + 1:03d}", f"bit {one + 1}: {effects[one]:.1f}", f"Bit {one + 1} flipped")
        for one in ranked[:SHOWN_BITS]
    ]
    facts = [
        ("Pixels change by", f"{effect(before, after):.2f} of 255 (root mean square)"),
        ("This bit is", f"no. {ranked.index(k) + 1} of {len(tried)} at {where} by effect" if k in tried else "—"),
    ]
    how = "codes[0, row - 1, column - 1, bit - 1] ^= 1; pipe.decode(codes)"
    call, posterior, files = {}, None, {}
    if isinstance(origin, Sampling):
        call, posterior, source = origin.call(model, 1), origin.posterior, "call"
    else:
        files, source = {"picture.png": png(square(model, origin))}, "picture.png"
    record = described(model, "flip", how, call, posterior)
    settings = {**record, "origin": source, "row": row, "column": column, "bit": bit}
    groups = [("", main), (f"The strongest bits at {where}, by how much they change", strongest)]
    return Made(groups, settings, facts, files=files)


def effect(before: Image.Image, after: Image.Image) -> float:
    """By how much pixels differ, root mean square, 0 … 255."""
    change = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    return float(np.sqrt((change**2).mean()))


def difference(before: Image.Image, after: Image.Image) -> Image.Image:
    """The change of each pixel, grey: black is none, white the largest."""
    change = np.abs(np.asarray(before, np.float64) - np.asarray(after, np.float64)).mean(-1)
    return Image.fromarray(np.rint(255 * change / max(change.max(), 1e-9)).astype(np.uint8)).convert("RGB")


# -- pieces -----------------------------------------------------------------------------------------------


class _Watch:
    """A pipeline's callback that reports each step, with some of the states decoded.

    steps: of this sampling.  done, total: where in the whole work it stands; by default it is all of it.
    over: (picture, mask), the picture standing outside the mask in what is shown.
    """

    def __init__(
        self,
        report: Report,
        steps: int,
        done: int = 0,
        total: int | None = None,
        over: tuple[Image.Image, Image.Image] | None = None,
    ):
        self.report, self.steps, self.done, self.total, self.over = report, steps, done, total or steps, over
        self.history: list[Image.Image] = []

    def __call__(self, pipe: BinaryLatentDiffusionPipeline, step: int, t: int, state: dict[str, Tensor]) -> None:
        pictures = None
        if (step + 1) % math.ceil(self.steps / PREVIEWS) == 0:
            pictures = tuple(self._shown(image) for image in pipe.decode(state["latents"]))
            self.history.append(pictures[0])
        self.report(Progress(self.done + step + 1, self.total, pictures))

    def _shown(self, image: Image.Image) -> Image.Image:
        return image if self.over is None else Image.composite(image, self.over[0], self.over[1])


def _steps(model: Model, call: dict[str, Any]) -> int:
    """How many steps a call takes."""
    return call["num_inference_steps"] or model.steps


def _code_of(model: Model, origin: Origin, report: Report, done: int = 0, total: int | None = None) -> Tensor:
    """The code (h, w, c) of an upload, or of the first picture of a seed."""
    if isinstance(origin, Image.Image):
        return model.pipe.encode(origin)[0]
    call = origin.call(model, 1)
    watch = _Watch(report, _steps(model, call), done, total)
    return origin.pipe(model)(**call, output_type="latent", callback_on_step_end=watch).codes[0]


def _needs_bits(model: Model) -> None:
    if not model.has_bits:
        raise SettingError(
            f"The codes of this model are no bits (its bottleneck is {model.pipe.tokenizer.config.bottleneck})."
        )


def _numbered(images: Sequence[Image.Image], name: str, captions: Sequence[str]) -> list[Picture]:
    """Pictures with their captions, named by their number."""
    return [
        Picture(image, f"{name}-{i:03d}", caption, f"Picture {i}, {caption}")
        for i, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]
