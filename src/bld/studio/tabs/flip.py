"""What a single bit draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from bld.studio import results
from bld.studio.controls import Controls, End, buttons, explain, output_area, slider
from bld.studio.export import described, png
from bld.studio.handlers import CLICK, guarded, heavy, light, moment, opened_upload, run_on_click, stopped_by
from bld.studio.jobs import Progress, Report, Stopped, Work, watched
from bld.studio.made import Made, Picture
from bld.studio.model import Model
from bld.studio.tabs.base import Tab
from bld.studio.tabs.generate import generate
from bld.studio.tasks import Origin, Sampling, code_of, needs_bits, square, steps_of, whole

MOST_TRIED = 256  # bits of a position whose effect is measured
SHOWN_BITS = 8
DECODED_AT_ONCE = 64
NO_BOARD = "Show the picture, then click a position of its code; or use the sliders."


def flip(model: Model, origin: Origin, row: int, column: int, bit: int, report: Report) -> Made:
    """What one bit of a code draws: the picture with it flipped, the difference, the strongest bits of its position.

    Args:
        origin: an upload, or how its picture is drawn.
        row: of the position, counted from 1.
        column: of the position, counted from 1.
        bit: of the position, counted from 1.
        report: called after each step.

    Raises:
        SettingError: for a row, column or bit that there is not, and for a model whose codes are no bits.
    """
    needs_bits(model)
    shape = model.pipe.prior.code_shape
    i = whole(row, "row", 1, shape.h) - 1
    j = whole(column, "column", 1, shape.w) - 1
    k = whole(bit, "bit", 1, shape.c) - 1
    steps = steps_of(model, origin.call(model, 1)) if isinstance(origin, Sampling) else 0
    tried = list(range(min(shape.c, MOST_TRIED)))
    code = code_of(model, origin, report, total=steps + 1)
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


def build(model: Model) -> None:
    """The tab that flips a bit."""
    shape = model.pipe.prior.code_shape
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            explain("What a single bit draws: flip it, and see which pixels change. A click on the picture flips too.")
            origin = End(model, "Picture", 0)
            show = gr.Button("Show the picture", elem_id="bld-show")
            board = gr.HTML(
                results.waiting(NO_BOARD),
                js_on_load="element.addEventListener('click', event => window.bldStudio.choose(event, trigger));",
                elem_id="bld-board",
            )
            row = slider(1, shape.h, (shape.h + 1) // 2, step=1, label="Row", info="Of the code's positions, from top.")
            column = slider(1, shape.w, (shape.w + 1) // 2, step=1, label="Column", info="From the left.")
            bit = slider(1, shape.c, 1, step=1, label="Bit", info="Which bit of this position.")
            controls = Controls(model, seed=False, classes=False, guidance=False)
            run, stop = buttons("Flip the bit", "flip")
        output = output_area("The picture before and after the flip will stand here.")

    def work(row: float, column: float, bit: float, *values: Any) -> Work[Made]:
        size = len(origin.inputs)
        picture = origin.origin(values[:size], values[size:], controls)
        return lambda report: flip(model, picture, int(row), int(column), int(bit), report)

    def drawn(request: gr.Request, row: float, column: float, *values: Any) -> Any:
        *settings, begun = values
        size = len(origin.inputs)
        picture = origin.origin(settings[:size], settings[size:], controls)
        try:
            view = picture_of(model, picture, stopped_by(stops, request, begun))
        except Stopped:
            return gr.skip()
        return results.board(view, shape.h, shape.w, int(row), int(column))

    def uploaded(path: str | None, row: float, column: float) -> str:
        if path is None:  # drawing the seed's picture takes all its steps, and nobody has asked for that
            return results.waiting(NO_BOARD)
        return results.board(square(model, opened_upload(path)), shape.h, shape.w, int(row), int(column))

    def chosen(event: gr.EventData) -> tuple[int, int]:
        return int(event._data["row"]), int(event._data["column"])

    sources = [row, column, *origin.inputs, *controls.inputs, moment()]
    show.click(guarded(drawn), sources, board, js=CLICK, **heavy())
    origin.upload.change(guarded(uploaded), [origin.upload, row, column], board, **light())
    for place in (row, column):
        place.change(None, [row, column], None, js="(row, column) => { window.bldStudio.place(row, column); }")
    click = board.click(guarded(chosen), None, [row, column], **light())
    inputs = [row, column, bit, *origin.inputs, *controls.inputs]
    stops = run_on_click(model, run, stop, inputs, output, work, "flipped", also=click)


def picture_of(model: Model, origin: Origin, stopped: Callable[[], bool] = lambda: False) -> Image.Image:
    """The picture that an origin names; `Stopped` where `stopped()` has ended its drawing."""
    if isinstance(origin, Image.Image):
        return square(model, origin)
    for item in watched(model, lambda report: generate(model, origin, 1, report), stopped):
        if isinstance(item, Made):
            return item.pictures[0].image
    raise AssertionError("the work ended without a result")


TAB = Tab("Flip bits", 5, build)
