"""From a click to pictures: work that a visitor sees step by step, can stop, and whose errors are sentences."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from bld.errors import DataError, UserError
from bld.studio import results
from bld.studio.jobs import Progress, Stopped, Stops, Work, watched
from bld.studio.made import Made
from bld.studio.model import Model

LOG = logging.getLogger("bld.studio")
UNEXPECTED = "Something went wrong in the studio, and its log says what: the page can be used on, with other settings."
NO_MEMORY = "There is not enough memory for this: ask for fewer pictures at a time."


TASKS_AT_ONCE, LIGHT_AT_ONCE = 1, 4
NOW = "() => Date.now()"
CLICK = "(...values) => [...values.slice(0, -1), Date.now()]"
CLICK_AND_MASK = "(...values) => [...values.slice(0, -2), window.bldStudio.mask(), Date.now()]"


def heavy() -> dict[str, Any]:
    """How an event that uses the model is queued."""
    return {
        "concurrency_id": "model",
        "concurrency_limit": TASKS_AT_ONCE,
        "api_visibility": "private",
        "show_progress": "minimal",
    }


def light() -> dict[str, Any]:
    """How an event that does without the model is queued."""
    return {**heavy(), "concurrency_id": "light", "concurrency_limit": LIGHT_AT_ONCE, "show_progress": "hidden"}


def urgent_event() -> dict[str, Any]:
    """How an event is queued that must not wait for the others."""
    return {**light(), "concurrency_id": "urgent"}


def run_on_click(
    model: Model,
    run: gr.Button,
    stop: gr.Button,
    inputs: list[Any],
    output: gr.HTML,
    work: Callable[..., Work[Made]],
    name: str,
    brushed: bool = False,
    also: Any = None,
) -> Stops:
    """Let the button do the work, shown step by step, and the other one stop it.

    Args:
        model: what does the work.
        run: the button that starts it.
        stop: the button that stops it.
        inputs: the components whose values are handed to `work`.
        output: where steps and result are shown.
        work: values → the work; it refuses bad ones before anything is computed.
        name: of the files to keep, after the model's.
        brushed: whether the last of the inputs is the mask of the page.
        also: an event after which the work starts too.

    Returns:
        Who has pressed the button that stops, for other work of the same tab.
    """
    click, stops = moment(), Stops()

    def handler(request: gr.Request, *values: Any) -> Iterator[str]:
        *settings, begun = values
        try:
            yield from shown_steps(model, work(*settings), name, stopped_by(stops, request, begun))
        except Exception as error:
            sentence = sentence_of(error)
            yield results.problem(sentence)
            raise gr.Error(sentence, print_exception=False) from None

    def ask_to_stop(request: gr.Request, pressed: float) -> None:
        stops.ask(request.session_hash, pressed)

    arguments = CLICK_AND_MASK if brushed else CLICK
    run.click(handler, [*inputs, click], output, js=arguments, **heavy())
    if also is not None:
        also.success(handler, [*inputs, click], output, js=arguments, **heavy())
    stop.click(ask_to_stop, click, None, js=NOW, **urgent_event())
    return stops


def moment() -> gr.Number:
    """When a button was pressed or the page opened, in the visitor's milliseconds."""
    return gr.Number(visible=False)


def stopped_by(stops: Stops, request: gr.Request, begun: float | None) -> Callable[[], bool]:
    """Whether the visitor wants what was begun at that moment to stop."""
    return lambda: stops.asked(request.session_hash, begun or math.inf)


def shown_steps(
    model: Model, work: Work[Made], name: str, stopped: Callable[[], bool] = lambda: False
) -> Iterator[str]:
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


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors become sentences on the page."""
    from functools import wraps

    @wraps(function)
    def handler(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except Exception as error:
            raise gr.Error(sentence_of(error), print_exception=False) from None

    return handler


def sentence_of(error: Exception) -> str:
    """What a visitor is told; what is not the visitor's fault goes to the log."""
    if isinstance(error, UserError):
        return str(error)
    LOG.error("A request failed.", exc_info=error)
    return NO_MEMORY if isinstance(error, torch.OutOfMemoryError | MemoryError) else UNEXPECTED


def opened_upload(path: str | None) -> Image.Image:
    """An upload, which `bld.studio.uploads` has written."""
    if path is None:
        raise DataError("There is no picture yet: upload one.")
    with Image.open(Path(path), formats=("PNG",)) as image:
        image.load()
        return image
