"""Controls that several tabs have, each saying what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from bld.errors import SettingError
from bld.studio import results
from bld.studio.handlers import opened_upload
from bld.studio.model import Model
from bld.studio.tasks import ANY, EACH, LARGEST_SEED, Origin, Sampling, reaching

MOST_PROMPT = 1000
NEW_SEED = "() => Math.floor(Math.random() * 2 ** 31)"


class Controls:
    """The controls of a sampling, those that make sense for the model; `sampling` reads them back."""

    def __init__(
        self,
        model: Model,
        *,
        seed: bool = True,
        classes: bool = True,
        each: bool = True,
        steps: bool = True,
        temperature: bool = True,
        guidance: bool = True,
        posterior: bool = True,
        default_steps: int | None = None,
        tag: str = "",
    ):
        defaults = model.pipe.index.sampling
        self.parts: dict[str, Any] = {}
        if classes and model.takes_prompts:
            self.parts["prompt"] = gr.Textbox(
                label="Prompt", info="What the pictures are to show.", max_length=MOST_PROMPT, lines=2
            )
        if classes and model.classes:
            self.parts["which"] = class_choice(model, each=each)
        if seed:
            self.parts["seed"] = seed_box("Seed", 0)
        if steps and model.pipe.diffusion.may_skip and model.steps > 1:
            self.parts["steps"] = slider(
                1, model.steps, default_steps or model.default_steps, step=1, label=f"Steps{tag}",
                info="Fewer are faster, more are finer.",
            )  # fmt: skip
        if temperature:
            least, most = reaching(0.1, 2, defaults.temperature)
            self.parts["temperature"] = slider(
                least, most, defaults.temperature, step=0.05, label=f"Temperature τ{tag}",
                info="Lower is safer and less diverse; 1 is the model as trained.",
            )  # fmt: skip
        if guidance and model.can_be_guided:
            what = "how far samples are led away from a weaker network's"
            if model.classes or model.takes_prompts:
                what = f"how strongly the {'class' if model.classes else 'prompt'} is followed"
            least, most = reaching(0, 8, defaults.guidance_scale)
            self.parts["guidance"] = slider(
                least, most, defaults.guidance_scale, step=0.1, label=f"Guidance{tag}",
                info=f"1 + ω: {what}; 1 is off.",
            )  # fmt: skip
        if posterior and model.is_bernoulli and tag:
            self.parts["posterior"] = gr.Radio(
                ["exact", "plugin"], value=model.posterior, label=f"Posterior{tag}",
                info="exact is eq. (8) of the paper; plugin is eq. (10), which counts evidence twice.",
            )  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """The components, in the order in which `sampling` expects their values."""
        return list(self.parts.values())

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Fields of a Sampling by their name."""
        found = dict(zip(self.parts, values, strict=True))
        if "seed" in found and found["seed"] is None:
            raise SettingError("The seed is empty: give a whole number.")
        if "which" in found:
            refuse_no_class(found["which"])
        return found

    def sampling(self, values: Sequence[Any], more: dict[str, Any] | None = None) -> Sampling:
        """What the controls say."""
        return Sampling(**{**self.read(values), **(more or {})})


class End:
    """One picture to start from: an upload, or else the picture of a seed and class."""

    def __init__(self, model: Model, name: str, seed: int):
        self.seed = seed_box(f"{name} seed", seed)
        self.which = class_choice(model, f"{name} class", each=False) if model.classes else None
        with gr.Accordion(f"{name}: an upload in place of the seed", open=False):
            self.upload = picture_upload(model, f"{name} upload", "It is used as long as it is here.", height=170)
        self.inputs: list[Any] = [self.seed, self.upload, *([self.which] if self.which is not None else [])]

    def origin(self, own: Sequence[Any], rest: Sequence[Any], controls: Controls) -> Origin:
        """The upload, or how the picture is drawn."""
        seed, path, *which = own
        if path is not None:
            return opened_upload(path)
        if seed is None:
            raise SettingError("The seed is empty: give a whole number, or upload a picture.")
        if which:
            refuse_no_class(which[0])
        return controls.sampling(rest, {"seed": seed, **({"which": which[0]} if which else {})})


def slider(least: float, most: float, value: float, *, label: str, **options: Any) -> gr.Slider:
    """A slider; where its box is empty or holds a number beyond its ends, the visitor is told so in a sentence.

    Gradio's own ends in a traceback where the box is empty. A class of our own would make it write into this package.
    """
    made = gr.Slider(least, most, value, label=label, **options)
    checked = made.preprocess

    def preprocess(payload: float) -> float:
        if isinstance(payload, bool) or not isinstance(payload, int | float) or not least <= payload <= most:
            what = "is empty" if payload is None else f"is {payload!r}"
            sentence = f"{label} {what}: give a number from {least:g} to {most:g}."
            raise gr.Error(sentence, print_exception=False)
        return checked(payload)

    made.preprocess = preprocess  # type: ignore[method-assign]
    return made


def refuse_no_class(which: Any) -> None:
    """Refuse a list of classes of which none is chosen."""
    if which is None:
        raise SettingError("No class is chosen: choose one, or Any.")


def class_choice(model: Model, label: str = "Class", each: bool = True) -> gr.Dropdown:
    """Any class, each in turn, or one of them."""
    choices: list[tuple[str, Any]] = [("Any", ANY), *([("Each in turn", EACH)] if each else [])]
    choices += [(name, i) for i, name in enumerate(model.classes)]
    return gr.Dropdown(
        choices, value=EACH if each else ANY, label=label, info="What the pictures are to show.", filterable=True
    )


def seed_box(label: str, value: int) -> gr.Number:
    """A seed, and a button that draws another."""
    with gr.Row(elem_classes="bld-seed"):
        seed = gr.Number(
            value, precision=0, minimum=0, maximum=LARGEST_SEED, label=label, scale=3, min_width=120,
            info="Names the noise that is started from.",
        )  # fmt: skip
        gr.Button("New seed", size="sm", scale=1, min_width=90).click(
            None, None, seed, js=NEW_SEED, api_visibility="private"
        )
    return seed


def count_slider(model: Model, label: str = "Pictures", default: int | None = None) -> gr.Slider:
    """How many pictures, up to what keeps the page quick."""
    most = model.most_images
    return slider(
        1, max(2, most), default or model.default_images, step=1, label=label, visible=most > 1,
        info=f"How many, up to {most}.",
    )  # fmt: skip


def picture_upload(model: Model, label: str, info: str, height: int = 200) -> gr.Image:
    """A place for a picture, and below it pictures of the model's own data, a click on which puts one there."""
    with gr.Group(elem_classes="bld-upload"):
        upload = gr.Image(
            type="filepath", image_mode=None, sources=["upload", "clipboard"], label=label, height=height,
            buttons=[], placeholder=f"Drop a picture here, or click to choose one.\n{info}",
        )  # fmt: skip
        if model.examples:
            gr.HTML(results.examples(model.examples), padding=False)
    return upload


def explain(sentence: str) -> None:
    """What a tab is for."""
    gr.HTML(f'<p class="bld-explain">{sentence}</p>')


def buttons(label: str, name: str) -> tuple[gr.Button, gr.Button]:
    """(start, stop)."""
    with gr.Row(elem_classes="bld-run"):
        run = gr.Button(label, variant="primary", elem_id=f"bld-run-{name}", scale=3, min_width=140)
        stop = gr.Button("Stop", variant="secondary", elem_id=f"bld-stop-{name}", scale=1, min_width=80)
    return run, stop


def output_area(sentence: str) -> gr.HTML:
    """Where results will stand; until then a sentence does."""
    with gr.Column(scale=2, min_width=300, elem_classes="bld-sticky"):
        return gr.HTML(results.waiting(sentence), elem_classes="bld-output", js_on_load=None, min_height=140)
