"""Nothing is drawn that nobody asked for, and what is drawn can be stopped; without a browser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from bld.studio.jobs import Stops
from bld.studio.model import Model
from bld.studio.tabs import flip, generate

gr = pytest.importorskip("gradio")
VISITOR = SimpleNamespace(session_hash="visitor")


def asked_to_stop(click: float) -> Stops:
    stops = Stops()
    stops.ask("visitor", click)
    return stops


def event_of(page: Any, function: str) -> Any:
    (found,) = [one for one in page.fns.values() if getattr(one.fn, "__name__", "") == function]
    return found


@pytest.fixture
def never(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(type(model.pipe), "__call__", drawn)


def test_an_upload_that_comes_or_goes_draws_no_picture_of_the_seed(
    model: Model, photo: Image.Image, tmp_path: Path, never: None
):
    photo.save(tmp_path / "photo.png")
    with gr.Blocks() as page:
        flip.build(model)
    changed = event_of(page, "uploaded")
    assert changed.targets[0][1] == "change" and changed.concurrency_id == "light"
    assert sum(changed.targets[0] in one.targets for one in page.fns.values()) == 1
    assert flip.NO_BOARD in changed.fn(None, 1, 1)
    board = changed.fn(str(tmp_path / "photo.png"), 1, 1)
    assert "bld-choose" in board and "<img" in board


def test_a_stop_ends_the_drawing_of_a_picture_to_flip_and_leaves_the_board(model: Model, monkeypatch):
    monkeypatch.setattr(flip, "run_on_click", lambda *_, **__: asked_to_stop(10))
    with gr.Blocks() as page:
        flip.build(model)
    show = event_of(page, "drawn")
    values = [one.value for one in show.inputs[:-1]]
    assert show.fn(VISITOR, *values, 9) == gr.skip()
    assert "bld-choose" in show.fn(VISITOR, *values, 11)


def test_the_opening_pictures_can_be_stopped_and_are_then_not_kept_for_others(model: Model, monkeypatch):
    opening = generate._opening(model, asked_to_stop(10))
    *_, last = opening(VISITOR, 9)
    assert "data-stopped" in last
    *_, last = opening(VISITOR, 11)
    assert "data-done" in last
    assert list(opening(VISITOR, 12)) == [last]
