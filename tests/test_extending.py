"""One new thing is one new file: a bottleneck and a kind of prior from outside, named in the settings and trained."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bld

BOTTLENECK = '''
import torch
from bld.tokenizer.bottlenecks import Bottleneck, Bottlenecked

class Signs(Bottleneck):
    """Bits by sign, never drawn."""
    kind = "signs"
    is_random = False
    @classmethod
    def of(cls, options):
        return cls(options.code_bits, options.code_bits)
    def noise(self, shape, generators, device):
        return None
    def codes(self, features, noise=None):
        return (features > 0).to(torch.uint8)
    def latent(self, codes):
        return 2 * codes.float() - 1
    def forward(self, features, noise=None, **_):
        codes = self.codes(features)
        return Bottlenecked(self.latent(codes) + features - features.detach(), codes, None, {})
'''

PRIOR = '''
import torch
import torch.nn.functional as F
from bld.diffusion.process import PriorLoss, SamplingStep
from bld.priors import PriorKind, Transformer
from bld.priors.base import register
from bld.seeding import uniform

class Marginals(Transformer):
    """Every bit by itself: what all other priors should beat."""
    def forward(self, z_t, t, condition=None):
        return self.see_all(self.embed(torch.zeros_like(z_t, dtype=torch.float32)), t, condition)

class Independent:
    kind, may_skip, has_likelihood, steps = "independent", False, True, 1
    def settings(self):
        return {}
    @classmethod
    def from_settings(cls):
        return cls()
    def training_loss(self, denoise, z0, t, generators=None, vlb_weight=0.1):
        return PriorLoss(F.binary_cross_entropy_with_logits(denoise(z0, t), z0.float()))
    def likelihood_bits(self, denoise, z0, *, steps=None, draws=1, generators=None):
        logits = denoise(z0, torch.ones(len(z0), dtype=torch.long))
        nats = F.binary_cross_entropy_with_logits(logits, z0.float(), reduction="none").flatten(1).double().sum(1)
        return nats / torch.tensor(2.0).log()
    def bound_at(self, denoise, z0, t, generators=None):
        return self.likelihood_bits(denoise, z0)
    def sample(self, denoise, shape, *, generators=None, device="cpu", callback=None, **_):
        logits = denoise(torch.zeros(shape, dtype=torch.uint8), torch.ones(shape[0], dtype=torch.long))
        codes = (uniform(shape, generators) < logits.sigmoid()).to(torch.uint8)
        if callback is not None:
            callback(SamplingStep(0, 1, 1, 0, codes, logits.sigmoid()))
        return codes

register(
    PriorKind(
        "independent", Marginals, Independent, of=lambda *_: Independent(), steps=lambda *_: 1, one_pass=True
    )
)
'''


def test_a_bottleneck_and_a_prior_are_a_file_each(tmp_path: Path, tiny_overrides: list[str]):
    (tmp_path / "added.py").write_text(BOTTLENECK + PRIOR)
    overrides = [*tiny_overrides, "tokenizer.bottleneck=signs", "prior.kind=independent", "codes.fresh=false"]
    overrides += ["prior.soft_targets=false", "sampling.steps=0"]
    code = f"""
import added
from bld.cli import main
run = {str(tmp_path / "run")!r}
assert main(["train", "--data", "digits", "--preset", "digits", "--out", run, *{overrides!r}]) == 0
assert main(["info", run]) == 0
assert main(["sample", run, "--num", "3", "--out", run + "-samples"]) == 0
import bld
pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(run)
assert type(pipe.prior).__name__ == "Marginals" and type(pipe.tokenizer.bottleneck).__name__ == "Signs"
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run-samples").glob("0*.png"))) == 3


DERIVED = '''
from bld.diffusion import BernoulliDiffusion
from bld.priors import KINDS, PriorKind
from bld.priors.base import register
from bld.priors.bernoulli import Denoiser
from bld.tokenizer.bottlenecks.bernoulli import Bernoulli

class Pulled(Bernoulli):
    """The paper's, with a penalty that has no weight among the settings."""
    kind = "pulled"
    def forward(self, features, *args, **kwargs):
        found = super().forward(features, *args, **kwargs)
        return found._replace(penalties={"pull": features.square().mean()})

class Renamed(BernoulliDiffusion):
    kind = "renamed"

register(
    PriorKind(
        "renamed", Denoiser, Renamed, lambda diffusion, *_: Renamed.from_settings(**diffusion.build().settings()),
        has_evidence=True, options=KINDS["bernoulli"].options,
    )
)
'''


def test_what_is_derived_from_ours_stays_itself(tmp_path: Path, tiny_overrides: list[str]):
    """Found by its name, with the options of what it comes from, after another posterior and as a beginning."""
    (tmp_path / "added.py").write_text(DERIVED)
    overrides = [*tiny_overrides, "tokenizer.bottleneck=pulled", "prior.kind=renamed"]
    overrides += ["tokenizer_training.log_every_steps=1"]
    code = f"""
import json
from pathlib import Path
import added
from bld.cli import main
run = {str(tmp_path / "run")!r}
train = ["train", "--data", "digits", "--preset", "digits"]
assert main([*train, "--out", run, *{overrides!r}]) == 0
lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
line = next(line for line in lines if "pull" in line)
assert line["pull"] > 0 and line["loss"] > line["mse"] + line["pull"] * 0.99
import bld
pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(run).with_posterior("plugin")
assert type(pipe.diffusion).__name__ == "Renamed" and pipe.diffusion.posterior == "plugin"
assert len(pipe(2, num_inference_steps=2, corrector_steps=1, final="draw").images) == 2
assert main([*train, "--init-from", run, "--out", run + "-again", *{tiny_overrides!r}]) == 0
again = bld.BinaryLatentDiffusionPipeline.from_pretrained(run + "-again")
assert type(again.diffusion).__name__ == "Renamed"
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


METRICS = """
from bld.evaluation.metrics.base import of_reconstructions, of_samples

@of_samples("worst", least=3)
def worst(sets):
    return {"worst": float((sets.samples.features - sets.reference.features.mean(0)).norm(dim=1).max())}

@of_reconstructions("mae")
def mae(device):
    return lambda images, others: (images - others).abs().flatten(1).mean(1)
"""


def test_a_metric_is_a_function_that_the_evaluation_asks(run_copy: Path, tmp_path: Path):
    (tmp_path / "added.py").write_text(METRICS)
    features = tmp_path / "features"
    code = f"""
import added
from bld.cli import main
run = {str(run_copy)!r}
arguments = ["--data", "digits", "--steps", "2"]
assert main(["train-features", "--data", "digits", "--out", {str(features)!r}, *arguments[2:]]) == 0
assert main(["evaluate", run, "--features", {str(features)!r}, "--metrics", "worst,mae,psnr", "--num", "20"]) == 0
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_copy / "evaluation.json").read_text())["figures"]
    assert metrics["worst"] > 0 and 0 < metrics["mae"] < 2 and metrics["mae_std"] > 0 and "psnr" in metrics


SOURCE = '''
from PIL import Image
from bld.data.sources.base import ImageSource, opens

class Greys(ImageSource):
    """A few flat pictures."""
    def __init__(self, count):
        self._describe(f"greys:{count}", [f"{i:02d}.png" for i in range(count)])
        self.fingerprint = self.location
    def _read(self, index):
        return Image.new("RGB", (8, 8), (10 * index,) * 3)

@opens(0.5)
def greys(text, path, index_to):
    return Greys(int(text.partition(":")[2])) if text.startswith("greys:") else None
'''


def test_a_source_of_images_is_a_file_with_its_opener(tmp_path: Path):
    (tmp_path / "added.py").write_text(SOURCE)
    code = """
import added
from bld.data import open_images
source = open_images("greys:3")
assert type(source).__name__ == "Greys" and len(source) == 3 and source.read(2).getpixel((0, 0)) == (20, 20, 20)
assert len(open_images("digits")) == 1797
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


TAB = """
import gradio as gr
from bld.studio.tabs import Tab
TAB = Tab("About", 2.5, lambda model: gr.HTML(f"<p>{model.name} knows {len(model.classes)} classes.</p>"))
"""


def test_a_tab_of_the_studio_is_a_file_that_the_page_finds(trained_run: Path, tmp_path: Path, monkeypatch):
    app, tabs = pytest.importorskip("bld.studio.app"), importlib.import_module("bld.studio.tabs")
    (tmp_path / "about.py").write_text(TAB)
    monkeypatch.setattr(tabs, "__path__", [*tabs.__path__, str(tmp_path)])
    assert [tab.title for tab in tabs.tabs()][:4] == ["Generate", "Inpaint", "About", "Reconstruct"]
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    model = importlib.import_module("bld.studio.model").Model(pipe, "a run")
    shown = [block.value for block in app.build(model).blocks.values() if isinstance(getattr(block, "value", 0), str)]
    assert any("knows 10 classes" in text for text in shown)
