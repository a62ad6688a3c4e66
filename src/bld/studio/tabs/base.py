"""What a tab is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bld.studio.model import Model

if TYPE_CHECKING:
    import gradio as gr


@dataclass(frozen=True)
class Opening:
    """What a visitor finds in a tab without having asked for it.

    Attributes:
        output: where it stands.
        handler: (who asks, when) → HTML, step by step.
    """

    output: gr.HTML
    handler: Callable[[gr.Request, float], Iterator[str]]


@dataclass(frozen=True)
class Tab:
    """One tab of the page.

    Attributes:
        title: what it is called.
        place: its place among the tabs, counted from the left; equal ones in the order of their files.
        build: makes its controls and handlers inside the page that is being built; returns its `Opening`, if the page
            opens with pictures there.
    """

    title: str
    place: float
    build: Callable[[Model], object]
