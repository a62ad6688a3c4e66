"""Results as HTML: pictures stand in the page as data, so that what is made never lies in a file of the server.

Every word that comes from outside (class names, captions, sentences of errors) is escaped here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from bld.studio.export import archive, numbered, png, pretty
from bld.studio.jobs import Progress
from bld.studio.made import Made, Picture
from bld.studio.model import Model

SMALL = 256  # pictures up to here are enlarged without blending, so that their pixels can be seen


def header(model: Model) -> str:
    """What model this is."""
    pipe, size = model.pipe, model.pipe.image_size
    config = pipe.tokenizer.config
    facts = [
        ("Picture", f"{size}×{size} pixels"),
        ("Code", f"{pipe.prior.code_shape}, {config.code_bytes:,} bytes"),
        ("Parameters", _millions(model.parameters)),
        ("Prior", f"{pipe.diffusion.kind}, {model.steps} steps"),
        ("Classes", f"{len(model.classes):,}" if model.classes else "none"),
        ("Runs on", f"{pipe.device.type}, {model.precision}"),
    ]
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        f'<header class="bld-head"><p>Binary latent diffusion</p><h1>{escape(model.name)}</h1>'
        f'<dl class="bld-facts">{items}</dl></header>'
    )


def _millions(count: int) -> str:
    """1234567 → 1.23 million."""
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e6:.3g} million" if count < 1e9 else f"{count / 1e9:.3g} billion"


def waiting(sentence: str) -> str:
    """What stands where the result will be."""
    return f'<div class="bld-result bld-empty"><p>{escape(sentence)}</p></div>'


def examples(images: Sequence[Image.Image]) -> str:
    """Pictures to try a task on, each of which a click or Enter puts into the upload above it."""
    buttons = "".join(
        f'<button type="button" class="bld-example" data-example="held-out-{i}.png" aria-label="Use held-out picture '
        f'{i + 1}"><img src="{_uri(image)}" alt="Held-out picture {i + 1}" class="{_pixels(image)}"></button>'
        for i, image in enumerate(images)
    )
    return f'<div class="bld-examples"><p>Or one that was kept from the training:</p>{buttons}</div>'


def problem(sentence: str) -> str:
    """A request that failed."""
    return f'<div class="bld-result bld-problem" role="alert"><p>{escape(sentence)}</p></div>'


def progress(now: Progress, pictures: Sequence[Image.Image] = (), stopped: bool = False) -> str:
    """How far the work is, or was when it was stopped, and the pictures as they are by now."""
    words = f"Step {now.step} of {now.total}" if not stopped else f"Stopped after step {now.step} of {now.total}"
    bar = f'<progress max="{now.total}" value="{now.step}" aria-label="Steps done"></progress>'
    small = "".join(
        f'<figure><img src="{_uri(image)}" alt="Picture {i} after {words.lower()}" class="{_pixels(image)}"></figure>'
        for i, image in enumerate(pictures)
    )
    grid = f'<div class="bld-grid" style="{_layout(pictures)}">{small}</div>' if pictures else ""
    busy = "data-stopped" if stopped else 'aria-busy="true"'
    return f'<div class="bld-result" {busy}><p class="bld-steps">{bar}<span>{words}</span></p>{grid}</div>'


def result(made: Made, name: str) -> str:
    """Everything that came out, with its files to keep, which are called `name`."""
    parts, start = [], 0
    side_by_side = len(made.groups) > 1 and all(heading[:2] in ("A:", "B:", "C:") for heading, _ in made.groups)
    for heading, pictures in made.groups:
        title = f"<h3>{escape(heading)}</h3>" if heading else ""
        figures = "".join(_figure(made, start + i, picture) for i, picture in enumerate(pictures))
        start += len(pictures)
        grid = f'<div class="bld-grid" style="{_layout([picture.image for picture in pictures], made.in_a_row)}">'
        parts.append(f"<section>{title}{grid}{figures}</div></section>")
    body = "".join(parts)
    if side_by_side:
        body = f'<div class="bld-columns">{body}</div>'
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in made.facts)
    facts = f'<dl class="bld-facts">{facts}</dl>' if facts else ""
    return f'<div class="bld-result" data-done>{body}{facts}{_history(made)}{_files(made, name)}</div>'


def _figure(made: Made, index: int, picture: Picture) -> str:
    """One picture, which a click or Enter saves."""
    data = _base64(png(picture.image, numbered(made, index)))
    return (
        f'<figure><button type="button" class="bld-save" data-save="{escape(picture.name)}.png"'
        f' title="Save as PNG" aria-label="{escape(picture.alt)}: save as PNG">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}" class="{_pixels(picture.image)}">'
        "</button>"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _history(made: Made) -> str:
    """How the first picture came about."""
    if len(made.history) < 2:
        return ""
    frames = "".join(
        f'<img src="{_uri(image)}" alt="State {i + 1} of {len(made.history)}" class="{_pixels(image)}">'
        for i, image in enumerate(made.history)
    )
    return f"<section><h3>How the first one came about</h3><div class='bld-strip'>{frames}</div></section>"


def _files(made: Made, name: str) -> str:
    """Links to keep everything, and the settings to read at once."""
    everything, settings = _base64(archive(made)), pretty(made.settings)
    extra = "".join(
        f'<a class="bld-link" download="{escape(file)}" href="data:application/octet-stream;base64,{_base64(data)}">'
        f"{escape(file)} ({len(data):,} bytes)</a>"
        for file, data in made.files.items()
        if not file.endswith(".png")
    )
    return (
        '<nav class="bld-files" aria-label="Files to keep">'
        f'<a class="bld-link" download="{escape(name)}.zip" href="data:application/zip;base64,{everything}">'
        "Save all (ZIP)</a>"
        f'<a class="bld-link" download="{escape(name)}.json" href="data:application/json;base64,{_base64(settings)}">'
        f"Save the settings (JSON)</a>{extra}</nav>"
        f"<details><summary>The settings that made this</summary><pre>{escape(settings.decode())}</pre></details>"
    )


# -- inpainting and flipping: pictures that are worked on ---------------------------------------------------


def painter(view: Image.Image, rows: int, columns: int) -> str:
    """A picture to brush a mask on; with the keyboard, position by position of the rows × columns of its code."""
    return (
        f'<div class="bld-painter" data-rows="{rows}" data-columns="{columns}">'
        f'<div class="bld-board"><img src="{_uri(view)}" alt="The picture as the model sees it" class="{_pixels(view)}"'
        ' draggable="false">'
        f'<canvas width="{view.width}" height="{view.height}" tabindex="0" role="application"'
        ' aria-label="Brush over what is to be filled. On the keyboard, arrows move, space marks, delete clears all.">'
        "</canvas></div>"
        '<p class="bld-tools"><label>Brush <input type="range" min="2" max="40" value="14" data-brush '
        'aria-label="Width of the brush"></label>'
        '<button type="button" data-paint="undo">Undo</button><button type="button" data-paint="invert">Invert</button>'
        '<button type="button" data-paint="clear">Clear</button></p></div>'
    )


def board(view: Image.Image, rows: int, columns: int, row: int, column: int) -> str:
    """A picture to choose a position of its code on; `row` and `column`, the chosen one, are counted from 1."""
    top, left = 100 * (row - 1) / rows, 100 * (column - 1) / columns
    place = f"top:{top:.4g}%;left:{left:.4g}%;width:{100 / columns:.4g}%;height:{100 / rows:.4g}%"
    lines = f"background-size:{100 / columns:.5g}% {100 / rows:.5g}%"
    return (
        f'<div class="bld-board bld-choose" data-rows="{rows}" data-columns="{columns}">'
        f'<img src="{_uri(view)}" alt="The picture; a click chooses a position" class="{_pixels(view)}"'
        ' draggable="false">'
        f'<div class="bld-lines" style="{lines}"></div><div class="bld-here" style="{place}"></div></div>'
    )


# -- pieces -----------------------------------------------------------------------------------------------


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _pixels(image: Image.Image) -> str:
    """The class of small pictures."""
    return "bld-pixels" if image.width <= SMALL else ""


def _layout(images: Sequence[Image.Image], in_a_row: bool = False) -> str:
    """How many pictures like these stand in a row, and how wide they are at most."""
    n, image = len(images), images[0]
    columns = n if in_a_row or n <= 4 else 4 if n <= 16 else 8
    most = 152 if image.width <= 128 else 256
    if image.mode == "L":  # a sheet of planes
        most = 480
    return f"--n:{columns};--most:{most}px"
