"""Table 6: seconds for an image, codes and pixels, at batch 1 with 16 and 64 steps; and for one of a large batch.

    python benchmarks/per_image.py

The paper's sizes at 256×256 (24 × 512 × 8, 16×16×32 bits), networks untrained: what they draw takes as long.
"""

from __future__ import annotations

import torch
from measuring import DEVICE, in_turn, options, precise, spread, table, write

from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.priors import Denoiser
from bld.tokenizer import BinaryAutoencoder
from bld.training.config import load_settings


def main() -> None:
    gpu = DEVICE.type == "cuda"
    args = options(__doc__, steps=[16, 64], batches=[1, 64, 256] if gpu else [1], rounds=5 if gpu else 3)
    torch.manual_seed(0)
    settings = load_settings("churches256")
    diffusion, shape = settings.diffusion.build(), settings.tokenizer.code_shape
    prior = Denoiser(settings.denoiser(shape, 0), diffusion.evidence_logits())
    pipe = BinaryLatentDiffusionPipeline(BinaryAutoencoder(settings.tokenizer), prior, diffusion).to(DEVICE)
    rows = []
    for precision in ("bf16", "float32"):
        for batch in args.batches:
            for steps in args.steps:
                images = batch if batch == 1 else 2 * batch
                call = lambda i=images, b=batch, n=steps: pipe(  # noqa: E731
                    i, num_inference_steps=n, generator=0, batch_size=b, output_type="np"
                )
                with precise(precision):
                    times = in_turn({"call": call}, args.rounds)["call"]
                found = spread([t / images for t in times])
                rows.append({"precision": precision, "batch": batch, "steps": steps, "s per image": found})
                table(rows[-1:])
    table(rows)
    write(__file__, args.out, {"rows": rows})


if __name__ == "__main__":
    main()
