"""Fill a hole in a picture, several times over.

    python examples/inpaint.py demo                          # the run of `make demo`, and one of its digits
    python examples/inpaint.py runs/photos cat.png mask.png

White is filled, black is kept. Outside the mask the result has the picture's own pixels.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import bld
from bld.data import make_grid, open_images, save_png, to_unit

run, *pictures = sys.argv[1:] or ["demo"]
pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(run)

if pictures:
    image, mask = (Image.open(path) for path in pictures)
else:  # a digit, and its lower half to be filled
    image = open_images("digits").read(3)
    hole = np.zeros((8, 8), np.uint8)
    hole[4:] = 255
    mask = Image.fromarray(hole)

filled = pipe.inpaint(image, mask, num_images=5, num_inference_steps=16, generator=0).images

size = (pipe.image_size, pipe.image_size)
row = [image.convert("RGB").resize(size), mask.convert("RGB").resize(size), *filled]
sheet = to_unit(torch.stack([torch.from_numpy(np.array(tile)).permute(2, 0, 1) for tile in row]))
out = Path(run) / "inpainted.png"
save_png(make_grid(sheet, columns=len(row), scale=max(1, 64 // pipe.image_size)), out)
print(f"Picture, mask and {len(filled)} fillings: {out}")
