"""Write images as bits, pack them into bytes, and draw them again.

    python examples/encode_and_decode.py demo

A code is bits of 0 and 1, (B, h, w, c) uint8; packed, eight to a byte. `bld encode` stores codes so, or, with
`codes.fresh`, how probable each bit is, from which the prior draws codes anew in each step.
"""

import sys

import bld
from bld.codes import bit_statistics, pack, to_grid, to_tokens, unpack
from bld.data import open_images, psnr

pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo")
source = open_images("digits")
images = pipe.preprocess([source.read(i) for i in range(200)])  # (200, 3, S, S) in [0, 1]

codes = pipe.encode(images)  # grid: (200, h, w, c)
tokens = to_tokens(codes)  # what a prior speaks: (200, h·w, c)
packed = pack(tokens)  # what a disk holds: (200, bytes)
print(f"{images[0].numel()} numbers an image → {codes[0].numel()} bits → {packed.shape[1]} bytes")

again = to_grid(unpack(packed, pipe.prior.code_shape), pipe.prior.code_shape)
assert (again == codes).all()  # packing loses nothing
decoded = pipe.decode(again, "pt")
print(f"Drawn again from those bytes: {psnr(images * 2 - 1, decoded * 2 - 1).mean():.1f} dB PSNR")

used = bit_statistics(tokens)
print(f"A bit carries {used.mean_entropy:.2f} bits of information by itself; {used.constant} never change;")
print(f"the two most alike correlate by {used.strongest_correlation:.2f}.")

# A code is a place to tinker: change one bit everywhere, and see by how much the pictures change.
flipped = codes.clone()
flipped[..., 0] ^= 1
change = (pipe.decode(flipped, "pt") - pipe.decode(codes, "pt")).abs().mean()
print(f"Flipping the first of the {codes.shape[-1]} bits at every position moves a pixel by {change:.3f} of its range.")
