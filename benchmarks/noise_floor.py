"""How small can each metric get, and how large is it for nonsense: the sanity table of docs/evaluation.md.

    python benchmarks/noise_floor.py --data cifar10-test.zip --features FOLDER --run RUN [--num 1000] [--out X.json]

Rows: two disjoint halves of the real images against each other (the noise floor at that many images); `--num` images of
the one half against the other; samples of the run; samples of the same networks before any training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bld.data import ImageSet, Preprocessing
from bld.evaluation.evaluate import image_batches, samples
from bld.evaluation.features import load_extractor
from bld.evaluation.metrics.distances import extract, score
from bld.evaluation.request import Request
from bld.evaluation.sample_conditions import Asked
from bld.experiments.page import Table, machine
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.seeding import keyed_permutation
from bld.tokenizer import BinaryAutoencoder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()

    trained = BinaryLatentDiffusionPipeline.from_pretrained(args.run)
    extractor = load_extractor(args.features)
    images = ImageSet.open(args.data, Preprocessing(trained.image_size))
    order = keyed_permutation(0, "halves", 0, len(images))
    halves = [images.subset(order[i::2].copy()) for i in (0, 1)]
    tables = [extract(image_batches(half), extractor) for half in halves]
    few = extract(image_batches(halves[0].subset(range(args.num))), extractor)

    torch.manual_seed(0)
    untrained = BinaryLatentDiffusionPipeline(
        BinaryAutoencoder(trained.tokenizer.config), type(trained.prior)(trained.prior.config), trained.diffusion
    )
    request = Request(num=args.num, steps=args.steps, batch_size=250)
    rows = {
        f"one half of the real images ({len(halves[0]):,}) against the other": score(tables[0], tables[1]),
        f"{args.num:,} real images against the other half": score(few, tables[1]),
    }
    for name, pipeline in (("samples of the run", trained), ("samples before any training", untrained)):
        made = extract(samples(pipeline, request, Asked("nothing"), 0, args.num), extractor)
        rows[f"{args.num:,} {name} against the other half"] = score(made, tables[1])
    names = ["fd", "kid_mean", "is_mean", "precision", "recall", "diversity"]
    headings = ["", extractor.distance_name(), "KID", "inception score", "precision", "recall", "diversity"]
    cells = [[label, *(f"{metrics[name]:.3g}" for name in names)] for label, metrics in rows.items()]
    print(f"{machine()}; {extractor.name} ({extractor.sha256})\n\n{Table(headings, cells)}")
    record = {"machine": machine(), "extractor": [extractor.name, extractor.sha256], "steps": args.steps, "rows": rows}
    args.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
