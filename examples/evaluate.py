"""Judge a run from Python: reconstruction, likelihood and Fréchet distance, without any download.

    python examples/evaluate.py demo

`bld evaluate` does the same, writes everything that moves a metric beside it, resumes, and scales to 50,000 samples.
"""

import sys
from pathlib import Path

import torch

import bld
from bld.evaluation.classifier_training import train_classifier
from bld.evaluation.evaluate import Request, evaluate_run
from bld.evaluation.features import load_extractor
from bld.evaluation.load_run import open_run
from bld.training.run_folder import RunFolder

run = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
num, classifier_steps = (int(word) for word in (sys.argv[2:] or [1000, 500]))

pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(run)
opened = open_run(RunFolder(run), torch.device("cpu"))  # finds the run's images again, split as in the training
train, held_out = opened.train, opened.held_out

# A judge of our own: a small classifier of the images' labels. Its features make a Fréchet distance (which is no FID).
judge = run / "judge"
if not judge.is_dir():
    train_classifier(train, held_out, judge, steps=classifier_steps, batch_size=64, seed=0, say=print)
extractor = load_extractor(str(judge), torch.device("cpu"))

request = Request(metrics=("fd", "precision", "recall", "psnr", "bits"), num=num, classes="all" if pipe.classes else "")
metrics = evaluate_run(pipe, train, held_out, request, extractor, run / "evaluation", say=print)
for name, value in metrics.items():
    print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")
