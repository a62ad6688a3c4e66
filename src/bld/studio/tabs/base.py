"""What a tab is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bld.studio.model import Model

if TYPE_CHECKING:
    import gradio as gr


@dataclass(frozen=True)
class Tab:
    """One tab of the page.

    Attributes:
        title: what it is called.
        place: its place among the tabs, counted from the left; equal ones in the order of their files.
        build: makes its controls and handlers inside the page that is being built; returns its output, if the page
            opens with pictures there.
        opening: of the tab that the page opens with: model → what makes its first pictures, as HTML, step by step.
    """

    title: str
    place: float
    build: Callable[[Model], gr.HTML | None]
    opening: Callable[[Model], Callable[[], Iterator[str]]] | None = None
