"""Files → tensors (3, H, W) in [-1, 1]; tensors → PNG files and grids.

    open_images ─▶ ImageSource.read ─▶ to_rgb ─▶ center_view, training_view ─▶ ImageSet ─▶ batches
    batches ─▶ to_uint8 ─▶ to_pil, make_grid ─▶ save_png

An image is uint8 in 0 … 255 while it is stored and float32 in [-1, 1], v / 127.5 - 1, once a network sees it.
"""

from bld.data.captions import read_captions
from bld.data.dataset import ImageSet
from bld.data.decoding import decode_file
from bld.data.fidelity import SMALLEST_MSE, mean_squared_error, psnr
from bld.data.grid import make_grid, make_pairs
from bld.data.preprocessing import Preprocessing, Resample, center_view, training_view
from bld.data.rgb import to_rgb
from bld.data.saving import save_png
from bld.data.sources.base import ImageSource, meet_by_name, name_fractions
from bld.data.sources.opening import open_images
from bld.data.values import to_pil, to_uint8, to_unit

__all__ = [
    "SMALLEST_MSE",
    "ImageSet",
    "ImageSource",
    "Preprocessing",
    "Resample",
    "center_view",
    "decode_file",
    "make_grid",
    "make_pairs",
    "mean_squared_error",
    "meet_by_name",
    "name_fractions",
    "open_images",
    "psnr",
    "read_captions",
    "save_png",
    "to_pil",
    "to_rgb",
    "to_uint8",
    "to_unit",
    "training_view",
]
