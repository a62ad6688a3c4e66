"""The page: header, tabs and looks."""

from __future__ import annotations

from importlib import resources

import gradio as gr

from bld.studio import results
from bld.studio.handlers import NOW, heavy, moment
from bld.studio.model import Model
from bld.studio.tabs import tabs
from bld.studio.tabs.base import Opening


def build(model: Model) -> gr.Blocks:
    """The page of a model; `bld.studio.server` launches it."""
    with gr.Blocks(title=f"{model.name} · bld studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(results.header(model), elem_id="bld-header")
        with gr.Tabs():
            for tab in tabs():
                with gr.Tab(tab.title, id=tab.title.lower()):
                    opening = tab.build(model)
                    if isinstance(opening, Opening):
                        page.load(opening.handler, moment(), opening.output, js=NOW, **heavy())
    return page


def urgent(page: gr.Blocks) -> frozenset[int]:
    """Numbers of the events that need not wait for the model."""
    return frozenset(i for i, event in page.fns.items() if event.concurrency_id == "urgent")


def theme() -> gr.themes.Base:
    """Quiet, with the system's own fonts, so that nothing is fetched from anywhere."""
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
