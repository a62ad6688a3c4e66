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
from bld.data import make_grid, open_images, save_png
from bld.data.inputs import mask_view, opened_masks

run, *pictures = sys.argv[1:] or ["demo"]
pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(run)

if pictures:
    image, mask = (Image.open(path) for path in pictures)
else:  # a digit, and its lower half to be filled
    image = open_images("digits").read(3)
    lower = np.zeros((8, 8), np.uint8)
    lower[4:] = 255
    mask = Image.fromarray(lower)

filled = pipe.inpaint(image, mask, num_images=5, generator=0, output_type="pt").images

# Picture and mask as the pipeline sees them: upright, laid over the background, cropped to the square, resized.
hole = mask_view(opened_masks(mask, 1)[0], pipe.image_size)
tiles = torch.cat([pipe.preprocess(image), hole.float().expand(1, 3, -1, -1), filled])
out = Path(run) / "inpainted.png"
save_png(make_grid(2 * tiles - 1, columns=len(tiles), scale=max(1, 64 // pipe.image_size)), out)
print(f"Picture, mask and {len(filled)} fillings: {out}")
