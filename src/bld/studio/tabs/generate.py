"""New pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from bld.studio import results
from bld.studio.controls import Controls, buttons, count_slider, explain, output_area
from bld.studio.export import described
from bld.studio.handlers import run_on_click, sentence_of, shown_steps, stopped_by
from bld.studio.jobs import Report, Stops, Work
from bld.studio.made import Made
from bld.studio.model import Model
from bld.studio.tabs.base import Opening, Tab
from bld.studio.tasks import ANY, EACH, Sampling, Watch, numbered_pictures, steps_of


def generate(model: Model, sampling: Sampling, count: int, report: Report) -> Made:
    """`count` pictures of a seed, as `pipe(…)` and `bld sample` make them."""
    call, pipe = sampling.call(model, count), sampling.pipe(model)
    watch = Watch(report, steps_of(model, call))
    images = pipe(**call, callback_on_step_end=watch, batch_size=count).images
    settings = described(model, "generate", "pipe(**call).images", call, posterior=sampling.posterior)
    pictures = numbered_pictures(images, f"seed{sampling.seed}", sampling.captions(model, count))
    return Made([("", pictures)], settings, history=watch.history)


def build(model: Model) -> Opening:
    """The tab that makes pictures."""
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            explain("New pictures, from noise to bits to pixels. The same seed and settings make the same pictures.")
            controls = Controls(model)
            count = count_slider(model)
            run, stop = buttons("Generate", "generate")
        output = output_area("The pictures will stand here; you can watch them come out of the noise.")

    def work(count: float, *values: Any) -> Work[Made]:
        sampling = controls.sampling(values)
        sampling.call(model, int(count))
        return lambda report: generate(model, sampling, int(count), report)

    stops = run_on_click(model, run, stop, [count, *controls.inputs], output, work, "generated")
    return Opening(output, _opening(model, stops))


def _opening(model: Model, stops: Stops) -> Callable[[gr.Request, float], Iterator[str]]:
    """The pictures that a visitor finds: those of the controls as they stand, made once for all visitors."""
    made: list[str] = []

    def work(report: Report) -> Made:
        return generate(model, Sampling(which=EACH if model.classes else ANY), model.default_images, report)

    def handler(request: gr.Request, begun: float) -> Iterator[str]:
        stopped = stopped_by(stops, request, begun)
        if made:
            yield made[0]
            return
        try:
            shown = ""
            for shown in shown_steps(model, work, "generated", stopped):
                yield shown
            if not stopped():
                made.append(shown)
        except Exception as error:
            yield results.problem(sentence_of(error))

    return handler


TAB = Tab("Generate", 1, build)
