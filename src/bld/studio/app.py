"""The page: a tab per task, each control saying what it does, and the handlers between controls and tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from bld.errors import DataError, SettingError, UserError
from bld.studio import results, tasks
from bld.studio.jobs import Progress, Report, Stopped, Stops, Work, watched
from bld.studio.made import Made
from bld.studio.model import Model
from bld.studio.tasks import ANY, EACH, Origin, Sampling
from bld.studio.uploads import mask_from

LOG = logging.getLogger("bld.studio")
UNEXPECTED = "Something went wrong in the studio, and its log says what: the page can be used on, with other settings."
NO_MEMORY = "There is not enough memory for this: ask for fewer pictures at a time."
MOST_PROMPT = 1000
TASKS_AT_ONCE, LIGHT_AT_ONCE = 1, 4

OPENING = "Generate"  # the tab that opens with pictures
NEW_SEED = "() => Math.floor(Math.random() * 2 ** 31)"
CLICK = "(...values) => [...values.slice(0, -1), Date.now()]"
CLICK_AND_MASK = "(...values) => [...values.slice(0, -2), window.bldStudio.mask(), Date.now()]"


def build(model: Model) -> gr.Blocks:
    """The page of a model; `bld.studio.server` launches it."""
    with gr.Blocks(title=f"{model.name} · bld studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(results.header(model), elem_id="bld-header")
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    output = tab(model)
                    if name == OPENING:
                        page.load(_opening(model), None, output, **_heavy())
    return page


def urgent(page: gr.Blocks) -> frozenset[int]:
    """Numbers of the events that need not wait for the model."""
    return frozenset(i for i, event in page.fns.items() if event.concurrency_id == "urgent")


def theme() -> gr.themes.Base:
    """Quiet, with the system's own letters, so that nothing is fetched from anywhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_sm,
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )


def style() -> str:
    """studio.css"""
    return resources.files("bld.studio").joinpath("studio.css").read_text(encoding="utf-8")


def script() -> str:
    """studio.js, as an element of the page's head."""
    code = resources.files("bld.studio").joinpath("studio.js").read_text(encoding="utf-8")
    return f"<script>\n{code}</script>"


# -- the tabs ---------------------------------------------------------------------------------------------


def _generate(model: Model) -> gr.HTML:
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            _explain("New pictures, from noise to bits to pixels. The same seed and settings make the same pictures.")
            controls = _Controls(model)
            count = _count(model)
            run, stop = _buttons("Generate", "generate")
        output = _output("The pictures will stand here; you can watch them come out of the noise.")

    def work(count: float, *values: Any) -> Work[Made]:
        sampling = controls.sampling(values)
        sampling.call(model, int(count))
        return lambda report: tasks.generate(model, sampling, int(count), report)

    _run(model, run, stop, [count, *controls.inputs], output, work, "generated")
    return output


def _opening(model: Model) -> Callable[[], Iterator[str]]:
    """The pictures that a visitor finds: those of the controls as they stand, made once for all visitors."""
    made: list[str] = []

    def work(report: Report) -> Made:
        return tasks.generate(model, Sampling(which=EACH if model.classes else ANY), model.default_images, report)

    def handler() -> Iterator[str]:
        if made:
            yield made[0]
            return
        try:
            shown = ""
            for shown in _shown(model, work, "generated"):
                yield shown
            made.append(shown)
        except Exception as error:
            yield results.problem(_sentence(error))

    return handler


def _inpaint(model: Model) -> None:
    shape = model.pipe.prior.code_shape
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            _explain("Brush over a part of a picture; it is filled to suit the rest, which stays as it is.")
            upload = _upload(model, "A picture", "Its central square is taken, at the model's size.")
            board = gr.HTML(results.waiting("Choose a picture above; then brush here."), elem_id="bld-mask")
            mask = gr.Textbox(visible=False)
            count = _count(model, "Fillings", default=min(4, model.default_images))
            walks = gr.Slider(
                1, tasks.MOST_WALKS, 1, step=1, label="Resample walks", visible=model.is_bernoulli,
                info="Repeats each step; 2 to 4 make the border match better, and take as many times longer.",
            )  # fmt: skip
            controls = _Controls(model)
            run, stop = _buttons("Fill", "inpaint")
        output = _output("The fillings will stand here.")

    def show(path: str | None) -> str:
        if path is None:
            return results.waiting("Choose a picture above; then brush here.")
        return results.painter(tasks.square(model, _opened(path)), shape.h, shape.w)

    def work(path: str | None, count: float, walks: float, *values: Any) -> Work[Made]:
        picture = tasks.square(model, _opened(path))
        hole = mask_from(values[-1], picture.size)
        sampling = controls.sampling(values[:-1])
        return lambda report: tasks.inpaint(model, picture, hole, sampling, int(count), int(walks), report)

    upload.change(_guarded(show), upload, board, **_light())
    inputs = [upload, count, walks, *controls.inputs, mask]
    _run(model, run, stop, inputs, output, work, "inpainted", brushed=True)


def _reconstruct(model: Model) -> None:
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            _explain("What is left of a picture after it has been written as bits, and what those bits look like.")
            upload = _upload(model, "A picture", "Its central square is taken, at the model's size.")
            run, stop = _buttons("Reconstruct", "reconstruct")
        output = _output("The picture and its reconstruction will stand here side by side.")

    def work(path: str | None) -> Work[Made]:
        picture = _opened(path)
        return lambda report: tasks.reconstruct(model, picture, report)

    _run(model, run, stop, [upload], output, work, "reconstructed")


def _interpolate(model: Model) -> None:
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            _explain(
                "Between two codes of bits there is no line: one after another the bits that differ are taken from the "
                "second, and each mixture is noised a little and denoised, so that it becomes a picture again."
            )
            first, second = _End(model, "First", 0), _End(model, "Second", 1)
            frames = gr.Slider(3, tasks.MOST_FRAMES, 8, step=1, label="Pictures", info="Both ends included.")
            strength = gr.Slider(
                0, 1, 0.5 if model.is_bernoulli else 0, step=0.05, label="Denoising", interactive=model.is_bernoulli,
                info="0 shows the bare mixtures; the more, the further the middle may leave them.",
            )  # fmt: skip
            controls = _Controls(model, seed=False, classes=False, guidance=False)
            run, stop = _buttons("Interpolate", "interpolate")
        output = _output("The strip will stand here.")

    def work(frames: float, strength: float, *values: Any) -> Work[Made]:
        size = len(first.inputs)
        rest = values[2 * size :]
        ends = [end.origin(own, rest, controls) for end, own in ((first, values[:size]), (second, values[size:]))]
        return lambda report: tasks.interpolate(model, ends, int(frames), strength, report)

    inputs = [frames, strength, *first.inputs, *second.inputs, *controls.inputs]
    _run(model, run, stop, inputs, output, work, "interpolated")


def _flip(model: Model) -> None:
    shape = model.pipe.prior.code_shape
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            _explain("What a single bit draws: flip it, and see which pixels change. A click on the picture flips too.")
            origin = _End(model, "Picture", 0)
            show = gr.Button("Show the picture", elem_id="bld-show")
            board = gr.HTML(
                results.waiting("Show the picture, then click a position of its code; or use the sliders."),
                js_on_load="element.addEventListener('click', event => window.bldStudio.choose(event, trigger));",
                elem_id="bld-board",
            )
            row = gr.Slider(
                1, shape.h, (shape.h + 1) // 2, step=1, label="Row", info="Of the code's positions, from top."
            )
            column = gr.Slider(1, shape.w, (shape.w + 1) // 2, step=1, label="Column", info="From the left.")
            bit = gr.Slider(1, shape.c, 1, step=1, label="Bit", info="Which bit of this position.")
            controls = _Controls(model, seed=False, classes=False, guidance=False)
            run, stop = _buttons("Flip the bit", "flip")
        output = _output("The picture before and after the flip will stand here.")

    def work(row: float, column: float, bit: float, *values: Any) -> Work[Made]:
        size = len(origin.inputs)
        picture = origin.origin(values[:size], values[size:], controls)
        return lambda report: tasks.flip(model, picture, int(row), int(column), int(bit), report)

    def drawn(row: float, column: float, *values: Any) -> str:
        size = len(origin.inputs)
        view = _picture_of(model, origin.origin(values[:size], values[size:], controls))
        return results.board(view, shape.h, shape.w, int(row), int(column))

    def chosen(event: gr.EventData) -> tuple[int, int]:
        return int(event._data["row"]), int(event._data["column"])

    sources = [row, column, *origin.inputs, *controls.inputs]
    show.click(_guarded(drawn), sources, board, **_heavy())
    origin.upload.change(_guarded(drawn), sources, board, **_heavy())
    for place in (row, column):
        place.change(None, [row, column], None, js="(row, column) => { window.bldStudio.place(row, column); }")
    click = board.click(_guarded(chosen), None, [row, column], **_light())
    inputs = [row, column, bit, *origin.inputs, *controls.inputs]
    _run(model, run, stop, inputs, output, work, "flipped", also=click)


def _compare(model: Model) -> None:
    columns = []
    with gr.Column(elem_classes="bld-tab"):
        _explain("The same seeds under several settings, side by side: what a setting does, and nothing else.")
        with gr.Row():
            shared = _Controls(model, steps=False, temperature=False, guidance=False, posterior=False)
            count = _count(model, default=min(4, model.default_images))
        with gr.Row():
            for letter, steps in zip("ABC", _three_steps(model), strict=True):
                with gr.Column(min_width=260):
                    used = gr.Checkbox(letter != "C", label=f"Column {letter}", info="Made only when ticked.")
                    own = _Controls(model, seed=False, classes=False, default_steps=steps, tag=f" {letter}")
                    columns.append((used, own))
        run, stop = _buttons("Compare", "compare")
        output = _output("The columns will stand here.")

    def work(count: float, *values: Any) -> Work[Made]:
        seed_and_class, rest = values[: len(shared.inputs)], list(values[len(shared.inputs) :])
        chosen = []
        for _, own in columns:
            used, settings = rest[0], rest[1 : 1 + len(own.inputs)]
            rest = rest[1 + len(own.inputs) :]
            if used:
                chosen.append(own.sampling(settings, shared.read(seed_and_class)))
        if not chosen:
            raise SettingError("No column is chosen: tick A, B or C.")
        for sampling in chosen:
            sampling.call(model, int(count))
        return lambda report: tasks.compare(model, chosen, int(count), report)

    inputs = [count, *shared.inputs]
    for used, own in columns:
        inputs += [used, *own.inputs]
    _run(model, run, stop, inputs, output, work, "compared")


TABS: dict[str, Callable[[Model], gr.HTML | None]] = {
    "Generate": _generate,
    "Inpaint": _inpaint,
    "Reconstruct": _reconstruct,
    "Interpolate": _interpolate,
    "Flip bits": _flip,
    "Compare": _compare,
}


# -- controls ---------------------------------------------------------------------------------------------


class _Controls:
    """The controls of a sampling, those that make sense for the model; `sampling` reads them back."""

    def __init__(
        self,
        model: Model,
        *,
        seed: bool = True,
        classes: bool = True,
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
            self.parts["which"] = class_choice(model)
        if seed:
            self.parts["seed"] = seed_box("Seed", 0)
        if steps and model.pipe.diffusion.may_skip and model.steps > 1:
            self.parts["steps"] = gr.Slider(
                1, model.steps, default_steps or model.default_steps, step=1, label=f"Steps{tag}",
                info="Fewer are faster, more are finer.",
            )  # fmt: skip
        if temperature:
            self.parts["temperature"] = gr.Slider(
                0.1, 2, defaults.temperature, step=0.05, label=f"Temperature τ{tag}",
                info="Lower is safer and less diverse; 1 is the model as trained.",
            )  # fmt: skip
        if guidance and (model.classes or model.takes_prompts):
            what = "class" if model.classes else "prompt"
            self.parts["guidance"] = gr.Slider(
                0, 8, defaults.guidance_scale, step=0.1, label=f"Guidance{tag}",
                info=f"1 + ω: how strongly the {what} is followed; 1 is off.",
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
        return found

    def sampling(self, values: Sequence[Any], more: dict[str, Any] | None = None) -> Sampling:
        """What the controls say."""
        return Sampling(**{**self.read(values), **(more or {})})


class _End:
    """One picture to start from: an upload, or else the picture of a seed and class."""

    def __init__(self, model: Model, name: str, seed: int):
        self.seed = seed_box(f"{name} seed", seed)
        self.which = class_choice(model, f"{name} class", each=False) if model.classes else None
        with gr.Accordion(f"{name}: an upload in place of the seed", open=False):
            self.upload = _upload(model, f"{name} upload", "It is used as long as it is here.", height=170)
        self.inputs: list[Any] = [self.seed, self.upload, *([self.which] if self.which is not None else [])]

    def origin(self, own: Sequence[Any], rest: Sequence[Any], controls: _Controls) -> Origin:
        """The upload, or how the picture is drawn."""
        seed, path, *which = own
        if path is not None:
            return _opened(path)
        if seed is None:
            raise SettingError("The seed is empty: give a whole number, or upload a picture.")
        return controls.sampling(rest, {"seed": seed, **({"which": which[0]} if which else {})})


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
            value, precision=0, minimum=0, maximum=tasks.LARGEST_SEED, label=label, scale=3, min_width=120,
            info="Names the noise that is started from.",
        )  # fmt: skip
        gr.Button("New seed", size="sm", scale=1, min_width=90).click(
            None, None, seed, js=NEW_SEED, api_visibility="private"
        )
    return seed


def _count(model: Model, label: str = "Pictures", default: int | None = None) -> gr.Slider:
    most = model.most_images
    return gr.Slider(
        1, max(2, most), default or model.default_images, step=1, label=label, visible=most > 1,
        info=f"How many, up to {most}.",
    )  # fmt: skip


def _upload(model: Model, label: str, info: str, height: int = 200) -> gr.Image:
    """A place for a picture, and below it pictures of the model's own data, a click on which puts one there."""
    with gr.Group(elem_classes="bld-upload"):
        upload = gr.Image(
            type="filepath", image_mode=None, sources=["upload", "clipboard"], label=label, height=height,
            buttons=[], placeholder=f"Drop a picture here, or click to choose one.\n{info}",
        )  # fmt: skip
        if model.examples:
            gr.HTML(results.examples(model.examples), padding=False)
    return upload


def _explain(sentence: str) -> None:
    gr.HTML(f'<p class="bld-explain">{sentence}</p>')


def _buttons(label: str, name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row(elem_classes="bld-run"):
        run = gr.Button(label, variant="primary", elem_id=f"bld-run-{name}", scale=3, min_width=140)
        stop = gr.Button("Stop", variant="secondary", elem_id=f"bld-stop-{name}", scale=1, min_width=80)
    return run, stop


def _output(sentence: str) -> gr.HTML:
    with gr.Column(scale=2, min_width=300, elem_classes="bld-sticky"):
        return gr.HTML(results.waiting(sentence), elem_classes="bld-output", js_on_load=None, min_height=140)


def _three_steps(model: Model) -> list[int]:
    """Three numbers of steps worth comparing."""
    return [max(1, model.steps // 16), max(1, model.steps // 4), model.steps]


# -- handlers ---------------------------------------------------------------------------------------------


def _heavy() -> dict[str, Any]:
    """How an event that uses the model is queued."""
    return {
        "concurrency_id": "model",
        "concurrency_limit": TASKS_AT_ONCE,
        "api_visibility": "private",
        "show_progress": "minimal",
    }


def _light() -> dict[str, Any]:
    return {**_heavy(), "concurrency_id": "light", "concurrency_limit": LIGHT_AT_ONCE, "show_progress": "hidden"}


def _urgent() -> dict[str, Any]:
    return {**_light(), "concurrency_id": "urgent"}


def _run(
    model: Model,
    run: gr.Button,
    stop: gr.Button,
    inputs: list[Any],
    output: gr.HTML,
    work: Callable[..., Work[Made]],
    name: str,
    brushed: bool = False,
    also: Any = None,
) -> None:
    """Let the button do the work, shown step by step, and the other one stop it.

    brushed: whether the last of the inputs is the mask of the page.  also: an event after which the work starts too.
    """
    click = gr.Number(visible=False)  # when the button was pressed, in the visitor's milliseconds
    stops = Stops()

    def handler(request: gr.Request, *values: Any) -> Iterator[str]:
        *settings, begun = values
        try:
            asked = lambda: stops.asked(request.session_hash, begun or math.inf)  # noqa: E731
            yield from _shown(model, work(*settings), name, asked)
        except Exception as error:
            sentence = _sentence(error)
            yield results.problem(sentence)
            raise gr.Error(sentence, print_exception=False) from None

    def ask_to_stop(request: gr.Request, pressed: float) -> None:
        stops.ask(request.session_hash, pressed)

    arguments = CLICK_AND_MASK if brushed else CLICK
    run.click(handler, [*inputs, click], output, js=arguments, **_heavy())
    if also is not None:
        also.success(handler, [*inputs, click], output, js=arguments, **_heavy())
    stop.click(ask_to_stop, click, None, js="() => Date.now()", **_urgent())


def _shown(model: Model, work: Work[Made], name: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Work step by step, and last what came of it, or where it was stopped; its errors are raised."""
    now = Progress(0, 1)
    pictures: Sequence[Image.Image] = ()
    try:
        for item in watched(model, work, stopped):
            if isinstance(item, Made):
                yield results.result(item, f"{model.name}-{name}")
            else:
                now, pictures = item, item.pictures or pictures
                yield results.progress(now, pictures)
    except Stopped:
        yield results.progress(now, pictures, stopped=True)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors become sentences on the page."""
    from functools import wraps

    @wraps(function)
    def handler(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except Exception as error:
            raise gr.Error(_sentence(error), print_exception=False) from None

    return handler


def _sentence(error: Exception) -> str:
    """What a visitor is told; what is no fault of his goes to the log."""
    if isinstance(error, UserError):
        return str(error)
    LOG.error("A request failed.", exc_info=error)
    return NO_MEMORY if isinstance(error, torch.OutOfMemoryError | MemoryError) else UNEXPECTED


def _opened(path: str | None) -> Image.Image:
    """An upload, which `bld.studio.uploads` has written."""
    if path is None:
        raise DataError("There is no picture yet: upload one.")
    with Image.open(Path(path), formats=("PNG",)) as image:
        image.load()
        return image


def _picture_of(model: Model, origin: Origin) -> Image.Image:
    """The picture that an origin names."""
    if isinstance(origin, Image.Image):
        return tasks.square(model, origin)
    for item in watched(model, lambda report: tasks.generate(model, origin, 1, report)):
        if isinstance(item, Made):
            return item.pictures[0].image
    raise AssertionError("the work ended without a result")
