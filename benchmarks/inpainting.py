"""Should the network be shown known bits as they are, or at the noise level of each step?

    python benchmarks/inpainting.py --run RUN --data TEST.zip

Of images that the run was not trained on, several holes are cut.  For each way to show the known bits:

    bits     what the hidden bits cost under the network's prediction, in bits per bit, at steps t of T: the hidden
             bits are noised to t, the known ones shown in that way.  Less is better, 1 is knowing nothing
    error    root mean square difference of fillings and the original inside the hole, of 255, as the run samples;
             a filling need not be the original, but one that ignores its surroundings is farther from it
    seam     the same between the pixels on both sides of the hole's edge, and of the original for comparison

Classes are left open.  Metrics go into benchmarks/inpainting.json.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from measuring import options, table, write
from torch import Tensor

from bld.data import ImageSet
from bld.data.values import to_pil
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.seeding import keyed_draws, keyed_permutation

WAYS = ("noised", "clean")


def holes(side: int) -> dict[str, Tensor]:
    """(h, w), True where bits are hidden."""
    right, lower, centre = (torch.zeros(side, side, dtype=torch.bool) for _ in range(3))
    right[:, side // 2 :] = lower[side // 2 :] = True
    centre[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    return {"right half": right, "lower half": lower, "centre": centre}


@torch.no_grad()
def bits(pipe: Any, z0: Tensor, hole: Tensor, way: str, t: int) -> float:
    times, hidden = torch.full((len(z0),), t), hole.flatten()
    z_t = pipe.diffusion.diffuse(z0, times, keyed_draws(0, "inpainting", range(len(z0))))
    if way == "clean":
        z_t[:, ~hidden] = z0[:, ~hidden]
    flip = pipe.diffusion.flip_logits(pipe.prior.for_inference()(z_t, times, None), z_t)
    nats = F.binary_cross_entropy_with_logits(flip[:, hidden], (z_t ^ z0)[:, hidden].float())
    return float(nats / torch.log(torch.tensor(2.0)))


def seam(images: Tensor, mask: Tensor) -> float:
    """Root mean square step over the hole's edge, of 255."""
    steps = []
    for axis in (0, 1):
        count = mask.shape[axis]
        edge = mask.narrow(axis, 0, count - 1) ^ mask.narrow(axis, 1, count - 1)
        one, two = (images.narrow(axis - 2, start, count - 1) for start in (0, 1))
        steps.append((one - two)[..., edge].flatten())
    return float(torch.cat(steps).square().mean().sqrt()) * 127.5


def main() -> None:
    args = options(__doc__, run="", data="", count=100, seed=0)
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(args.run)
    images = ImageSet.open(args.data, pipe.preprocessing, progress=False, verify=False)
    rows = torch.from_numpy(keyed_permutation(args.seed, "inpainting", 0, len(images))[: args.count].copy())
    x = images.centre(rows)
    z0, pictures, T = pipe.tokenizer.encode(x).flatten(1, 2), to_pil(x), pipe.diffusion.steps
    found = []
    for name, hole in holes(pipe.tokenizer.code_shape.h).items():
        mask = hole.repeat_interleave(pipe.tokenizer.config.factor, 0).repeat_interleave(
            pipe.tokenizer.config.factor, 1
        )
        for way in WAYS:
            made = pipe.inpaint(pictures, mask.float(), num_images=1, generator=args.seed, known_bits=way,
                                output_type="pt").images * 2 - 1  # fmt: skip
            row: dict[str, Any] = {"hole": name, "known bits": way}
            row |= {f"bits, t = {t}": bits(pipe, z0, hole, way, t) for t in (T, 3 * T // 4, T // 2, T // 4)}
            row["error"] = float((made - x)[..., mask].square().mean().sqrt()) * 127.5
            row |= {"seam": seam(made, mask), "original's": seam(x, mask)}
            found.append(row)
            table([row])
    write(__file__, args.out, {"run": args.run.rsplit("/", 1)[-1], "images": args.count, "rows": found})


if __name__ == "__main__":
    main()
