"""A part of a picture made anew."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from bld.data.grid import hatched
from bld.errors import SettingError
from bld.studio import results
from bld.studio.controls import Controls, buttons, count_slider, explain, output_area, picture_upload, slider
from bld.studio.export import described, png
from bld.studio.handlers import guarded, light, opened_upload, run_on_click
from bld.studio.jobs import Report, Work
from bld.studio.made import Made, Picture
from bld.studio.model import Model
from bld.studio.tabs.base import Tab
from bld.studio.tasks import Sampling, Watch, numbered_pictures, square, steps_of, whole
from bld.studio.uploads import hole_in, mask_from

MOST_RESAMPLING = 8


def inpaint(
    model: Model,
    picture: Image.Image,
    mask: Image.Image,
    sampling: Sampling,
    count: int,
    resampling: int,
    report: Report,
) -> Made:
    """Fill the white part of the mask `count` times.

    Args:
        picture: of any size, seen as `square` shows it.
        mask: white where it is filled; as large as `square` shows the picture.
        sampling: how codes are drawn.
        count: number of fillings.
        resampling: how often each step is taken, 1 to 8.
        report: called after each step.

    Raises:
        SettingError: for a mask of another size or without white, and for numbers out of range.
    """
    view = square(model, picture)
    resampling = whole(resampling, "resampling", 1, MOST_RESAMPLING)
    call, pipe = sampling.call(model, count), sampling.pipe(model)
    if resampling > 1:
        call["resample"] = resampling
    if mask.size != view.size:
        raise SettingError(f"The mask is {mask.size} pixels and the picture {view.size}: paint it again.")
    mask = hole_in(mask)
    if mask.getbbox() is None:
        raise SettingError("Nothing is marked: brush over the part of the picture that is to be filled.")
    watch = Watch(report, steps_of(model, call), over=(view, mask))
    images = pipe.inpaint(view, mask, **call, callback_on_step_end=watch, batch_size=count).images
    record = described(
        model, "inpaint", 'pipe.inpaint(Image.open("picture.png"), Image.open("mask.png"), **call).images', call,
        posterior=sampling.posterior,
    )  # fmt: skip
    own = Picture(view, "picture", "the picture", "The picture as the model sees it")
    hole = Picture(hatched(view, mask), "marked", "what is filled", "The picture with the part to be filled hatched")
    fillings = numbered_pictures(images, f"filled-seed{sampling.seed}", [f"no. {i}" for i in range(count)])
    files = {"picture.png": png(view), "mask.png": png(mask)}
    return Made([("", [own, hole]), ("Fillings", fillings)], record, history=watch.history, files=files)


def build(model: Model) -> None:
    """The tab that fills a hole."""
    shape = model.pipe.prior.code_shape
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            explain("Brush over a part of a picture; it is filled to suit the rest, which stays as it is.")
            upload = picture_upload(model, "A picture", "Its central square is taken, at the model's size.")
            board = gr.HTML(results.waiting("Choose a picture above; then brush here."), elem_id="bld-mask")
            mask = gr.Textbox(visible=False)
            count = count_slider(model, "Fillings", default=min(4, model.default_images))
            resampling = slider(
                1, MOST_RESAMPLING, 1, step=1, label="Resampling", visible=model.is_bernoulli,
                info="Repeats each step; 2 to 4 make the border match better, and take as many times longer.",
            )  # fmt: skip
            controls = Controls(model, each=False)  # what the picture shows is there to see
            run, stop = buttons("Fill", "inpaint")
        output = output_area("The fillings will stand here.")

    def show(path: str | None) -> str:
        if path is None:
            return results.waiting("Choose a picture above; then brush here.")
        return results.painter(square(model, opened_upload(path)), shape.h, shape.w)

    def work(path: str | None, count: float, resampling: float, *values: Any) -> Work[Made]:
        picture = square(model, opened_upload(path))
        hole = mask_from(values[-1], picture.size)
        sampling = controls.sampling(values[:-1])
        return lambda report: inpaint(model, picture, hole, sampling, int(count), int(resampling), report)

    upload.change(guarded(show), upload, board, **light())
    inputs = [upload, count, resampling, *controls.inputs, mask]
    run_on_click(model, run, stop, inputs, output, work, "inpainted", brushed=True)


TAB = Tab("Inpaint", 2, build)
