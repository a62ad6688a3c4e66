"""The same seeds under several settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from bld.errors import SettingError
from bld.studio.controls import Controls, buttons, count_slider, explain, output_area
from bld.studio.export import described
from bld.studio.handlers import run_on_click
from bld.studio.jobs import Report, Work
from bld.studio.made import Made
from bld.studio.model import Model
from bld.studio.tabs.base import Tab
from bld.studio.tasks import Sampling, Watch, numbered_pictures, steps_of


def compare(model: Model, columns: Sequence[tuple[str, Sampling]], count: int, report: Report) -> Made:
    """The same seeds under several settings, a group each, named by the letter of its column."""
    calls = [(sampling.call(model, count), sampling.pipe(model)) for _, sampling in columns]
    total = sum(steps_of(model, call) for call, _ in calls)
    groups, records, done = [], [], 0
    for (letter, sampling), (call, pipe) in zip(columns, calls, strict=True):
        watch = Watch(report, steps_of(model, call), done, total)
        images = pipe(**call, callback_on_step_end=watch, batch_size=count).images
        done += steps_of(model, call)
        words = [
            f"{steps_of(model, call)} steps",
            f"τ {call['temperature']:g}",
            *([f"guidance {call['guidance_scale']:g}"] if model.can_be_guided else []),
            *([sampling.posterior or model.posterior or ""] if model.is_bernoulli else []),
        ]
        name = f"{letter}-seed{sampling.seed}"
        groups.append(
            (f"{letter}: {', '.join(words)}", numbered_pictures(images, name, sampling.captions(model, count)))
        )
        records.append({"column": letter, "posterior": sampling.posterior or model.posterior, "call": call})
    settings = described(model, "compare", "one pipe.with_posterior(posterior)(**call).images per column", {})
    return Made(groups, {**settings, "columns": records})


def build(model: Model) -> None:
    """The tab that shows the same seeds under several settings."""
    columns = []
    with gr.Column(elem_classes="bld-tab"):
        explain("The same seeds under several settings, side by side: what a setting does, and nothing else.")
        with gr.Row():
            shared = Controls(model, steps=False, temperature=False, guidance=False, posterior=False)
            count = count_slider(model, default=min(4, model.default_images))
        with gr.Row():
            for letter, steps in zip("ABC", _three_steps(model), strict=True):
                with gr.Column(min_width=260):
                    used = gr.Checkbox(letter != "C", label=f"Column {letter}", info="Made only when ticked.")
                    own = Controls(model, seed=False, classes=False, default_steps=steps, tag=f" {letter}")
                    columns.append((letter, used, own))
        run, stop = buttons("Compare", "compare")
        output = output_area("The columns will stand here.")

    def work(count: float, *values: Any) -> Work[Made]:
        seed_and_class, rest = values[: len(shared.inputs)], list(values[len(shared.inputs) :])
        chosen = []
        for letter, _, own in columns:
            used, settings = rest[0], rest[1 : 1 + len(own.inputs)]
            rest = rest[1 + len(own.inputs) :]
            if used:
                chosen.append((letter, own.sampling(settings, shared.read(seed_and_class))))
        if not chosen:
            raise SettingError("No column is chosen: tick A, B or C.")
        for _, sampling in chosen:
            sampling.call(model, int(count))
        return lambda report: compare(model, chosen, int(count), report)

    inputs = [count, *shared.inputs]
    for _, used, own in columns:
        inputs += [used, *own.inputs]
    run_on_click(model, run, stop, inputs, output, work, "compared")


def _three_steps(model: Model) -> list[int]:
    """Three numbers of steps worth comparing."""
    return [max(1, model.steps // 16), max(1, model.steps // 4), model.steps]


TAB = Tab("Compare", 6, build)
