"""Does bfloat16 change what is drawn?  Samples of a trained digits run, judged by an SVM, in bfloat16 and in float32.

    bld demo && python benchmarks/precision.py --run demo

500 samples of each seed, 16 steps, τ = 0.9, one class after the other; the judge is that of the demo.
"""

from __future__ import annotations

from pathlib import Path

import torch
from measuring import DEVICE, options, precise, spread, table, write

from bld.evaluation.digit_accuracy import digit_accuracy
from bld.pipeline import BinaryLatentDiffusionPipeline

JUDGED = 500


def main() -> None:
    args = options(__doc__, run="demo", seeds=[1, 2, 3, 4, 5])
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(Path(args.run)).to(DEVICE)
    labels = [i % 10 for i in range(JUDGED)]
    accuracy: dict[str, list[float]] = {"bf16": [], "float32": []}
    bits: dict[str, list[torch.Tensor]] = {name: [] for name in accuracy}
    for seed in args.seeds:
        for name, found in accuracy.items():
            with precise(name):
                out = pipe(
                    class_labels=labels, num_inference_steps=16, temperature=0.9, generator=seed, output_type="np"
                )
            found.append(100 * digit_accuracy(out.images.mean(-1), labels))
            bits[name].append(out.codes)
    equal = [float((a == b).float().mean()) for a, b in zip(bits["bf16"], bits["float32"], strict=True)]
    rows = [{"precision": name, "recognised %": spread(found)} for name, found in accuracy.items()]
    table(rows)
    print(f"bits of equal seeds that agree: {100 * spread(equal).median:.1f}%")
    write(__file__, args.out, {"rows": rows, "equal bits": equal, "seeds": args.seeds})


if __name__ == "__main__":
    main()
