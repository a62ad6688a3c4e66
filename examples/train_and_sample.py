"""Train on a folder of images, and sample from what was learned.

    python examples/train_and_sample.py my-photos runs/photos emoji64

Three lines do it: settle the settings, train, load. Run it again and it goes on where it stopped; `bld train` does the
same with more to choose. Settings may follow, as for `bld train`: prior.dim=128 tokenizer_training.steps=300
"""

import argparse
from pathlib import Path

import bld
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", default="digits", help="a folder, .zip or .tar; without it the digits")
parser.add_argument("out", nargs="?", type=Path, default=Path("runs/example"), help="folder of the run")
parser.add_argument("preset", nargs="?", default="digits")
parser.add_argument("settings", nargs="*", metavar="key=value")
args = parser.parse_args()

# The settings: defaults, then the preset, then the overrides. They are written to config.yaml in the run's folder.
run = RunFolder(args.out)
settings = run.adopt(args.preset, args.settings, args.data)

# Tokenizer → every image as bits → prior. Everything lands in the folder; stopping it loses nothing.
Recipe(settings, run, say=print).train()

# What was trained is a pipeline. Image i of a seed is always the same, however many are made at once.
pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(args.out)
images = pipe(num_images=8, generator=0).images
for i, image in enumerate(images):
    image.save(args.out / f"sample-{i}.png")
size = f"{pipe.image_size}×{pipe.image_size} pixels"
print(f"{len(images)} images of {size} in {args.out}, made from {pipe.prior.code_shape} bits.")
