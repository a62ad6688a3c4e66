"""What is left of a picture in its bits."""

from __future__ import annotations

import math

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bld.codes import pack
from bld.data import psnr, to_pil, to_unit
from bld.data.inputs import network_views
from bld.studio.controls import buttons, explain, output_area, picture_upload
from bld.studio.export import described
from bld.studio.handlers import opened_upload, run_on_click
from bld.studio.jobs import Progress, Report, Work
from bld.studio.made import Made, Picture
from bld.studio.model import Model
from bld.studio.tabs.base import Tab


def reconstruct(model: Model, picture: Image.Image, report: Report) -> Made:
    """A picture through its bits and back: what is lost, what the bits look like, how few they are."""
    view = network_views(picture, model.pipe.preprocessing)
    codes = model.pipe.encode(picture)
    again = to_unit(torch.from_numpy(np.array(model.pipe.decode(codes)[0])).permute(2, 0, 1)[None])
    report(Progress(1, 1))
    size, shape = model.pipe.image_size, model.pipe.prior.code_shape
    code_bytes, pixel_bytes = model.pipe.tokenizer.config.code_bytes, 3 * size**2
    width, height = picture.size
    facts = [
        ("PSNR", f"{float(psnr(view, again)):.2f} dB"),
        ("Code", f"{shape} = {code_bytes:,} bytes"),
        (f"Pixels the model sees, {size}×{size}", f"{pixel_bytes:,} bytes, {pixel_bytes / code_bytes:.3g}× the code"),
        (f"Upload, {width}×{height}", f"{3 * width * height:,} bytes of pixels"),
    ]
    pair = [
        Picture(to_pil(view)[0], "picture", "the picture", "The picture as the model sees it"),
        Picture(to_pil(again)[0], "reconstruction", "from its code", "The picture made again from its code"),
    ]
    groups, files = [("", pair)], {}
    if model.has_bits:
        caption = f"{shape.c} planes of {shape.h}×{shape.w}: one per bit, white is 1"
        groups.append(("Its bits", [Picture(bit_planes(codes[0]), "bits", caption, caption)]))
        files["code.bin"] = pack(codes)[0].tobytes()
    record = described(model, "reconstruct", "pipe.reconstruct(picture); code.bin: bld.codes.unpack", {})
    return Made(groups, {**record, "code_shape": list(shape), "psnr_db": float(psnr(view, again))}, facts, files=files)


def bit_planes(code: Tensor, scale: int | None = None, gap: int = 2) -> Image.Image:
    """Bits (h, w, c) as c black and white planes of h×w on one sheet, about as wide as high."""
    h, w, c = code.shape
    scale = scale or max(1, 48 // max(h, w))
    columns = max(d for d in range(1, c + 1) if c % d == 0 and d <= max(1, 2 * math.sqrt(c)))
    rows = c // columns
    sheet = np.full((rows * (h * scale + gap) + gap, columns * (w * scale + gap) + gap), 110, np.uint8)
    for plane in range(c):
        row, column = divmod(plane, columns)
        top, left = gap + row * (h * scale + gap), gap + column * (w * scale + gap)
        pixels = code[:, :, plane].numpy().astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + h * scale, left : left + w * scale] = 255 * pixels
    return Image.fromarray(sheet)


def build(model: Model) -> None:
    """The tab that writes a picture as bits and reads it back."""
    with gr.Row(elem_classes="bld-tab"):
        with gr.Column(scale=1, min_width=300):
            explain("What is left of a picture after it has been written as bits, and what those bits look like.")
            upload = picture_upload(model, "A picture", "Its central square is taken, at the model's size.")
            run, stop = buttons("Reconstruct", "reconstruct")
        output = output_area("The picture and its reconstruction will stand here side by side.")

    def work(path: str | None) -> Work[Made]:
        picture = opened_upload(path)
        return lambda report: reconstruct(model, picture, report)

    run_on_click(model, run, stop, [upload], output, work, "reconstructed")


TAB = Tab("Reconstruct", 3, build)
