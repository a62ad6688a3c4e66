"""The paper's method to the letter: one word, and codes that each training step draws anew (Algorithm 1, line 6)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bld
from bld.cli import main
from bld.codes import to_tokens
from bld.errors import SettingError
from bld.experiments.scales import SCALES, scale_for
from bld.training.code_cache import CacheKey, CodeCache, from_rows, to_rows
from bld.training.config import load_settings
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.stages.prior import Batch, PriorStage

REAL = ["tokenizer.bottleneck=gaussian", "prior.kind=gaussian"]
PAPERS = {
    "tokenizer.decoder_res_blocks": 3,
    "tokenizer_training.ema_decay": 0,
    "tokenizer_training.clip_norm": 0,
    "codes.fresh": True,
    "prior.evidence": False,
    "prior.null_condition": "absent",
    "diffusion.target": "flip",
    "prior_training.ema_decay": 0,
    "prior_training.clip_norm": 0,
    "prior.inpainting": 0,
    "sampling.steps": 0,
}


def value(settings: object, key: str) -> object:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def staged(path: Path) -> PriorStage:
    """The prior's stage of a finished run, as the recipe makes it."""
    run = RunFolder(path)
    recipe = Recipe(run.adopt(None, [], None), run, lambda _: None)
    tokenizer, cache = recipe._trained_tokenizer(), recipe.encode()
    return PriorStage(
        recipe.settings, cache, recipe._held_out_codes(tokenizer, None), tokenizer, recipe.accelerator, run
    )


def kept(overrides: list[str]) -> list[str]:
    """The overrides but for those that take back a part of it."""
    return [word for word in overrides if not word.startswith("codes.")]


@pytest.fixture(scope="module")
def faithful(tmp_path_factory, tiny_overrides) -> Path:
    """A run of the command, to the letter."""
    path = tmp_path_factory.mktemp("faithful") / "run"
    assert (
        main(
            ["train", "--data", "digits", "--preset", "digits", "--out", str(path), "--faithful", *kept(tiny_overrides)]
        )
        == 0
    )
    return path


def test_one_word_gives_all_of_it_and_a_setting_goes_over_it(faithful):
    settings = RunFolder(faithful).settings()
    assert {key: value(settings, key) for key in PAPERS} == PAPERS
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(faithful)
    assert pipe.prior.config.evidence == "none" and pipe.prior.config.null_condition == "absent"
    assert pipe.tokenizer.config.decoder_res_blocks == 3 and pipe(2, "3", guidance_scale=2.0, generator=0).images
    assert (faithful / "report.html").is_file()


def test_a_prior_alone_takes_its_part_and_leaves_the_tokenizer_as_it_is(trained_run, tmp_path, tiny_overrides):
    """The given tokenizer was trained without: the settings stay those that made it."""
    arguments = ["--data", "digits", "--preset", "digits", "--tokenizer", str(trained_run), "--faithful"]
    arguments += [word for word in kept(tiny_overrides) if not word.startswith("tokenizer")]
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 0
    before, after = RunFolder(trained_run).settings(), RunFolder(tmp_path / "run").settings()
    assert after.tokenizer == before.tokenizer
    assert after.codes.fresh and not after.prior.evidence and after.prior_training.ema_decay == 0


@pytest.mark.parametrize("preset", ["churches256", "imagenet256", "cifar10", "digits"])
def test_every_preset_takes_it(preset):
    from bld.training.config import FAITHFUL

    settings = load_settings(preset, overrides=[*FAITHFUL, "prior.evidence=true"])
    assert settings.prior.evidence and settings.codes.fresh  # what is said after it goes over it


def test_the_documentation_tells_all_that_it_changes():
    page = (Path(__file__).parents[2] / "docs" / "paper-to-settings.md").read_text(encoding="utf-8")
    assert not [key for key in PAPERS if f"`{key}`" not in page.split("**`--faithful`**")[1]]


def test_the_experiments_take_it_and_the_paper_scale_always_does():
    plain, faithful = scale_for("cifar10", "table5"), scale_for("cifar10", "table5", faithful=True)
    assert plain.label == "cifar10" and faithful.label == "cifar10-faithful"  # neither page nor runs meet
    for scale in (faithful, scale_for("paper", "table5")):
        for overrides in scale.tokenizers.values():
            settings = load_settings(scale.preset, overrides=[*scale.overrides, *overrides])
            assert not settings.prior.evidence and settings.prior_training.ema_decay == 0
            assert settings.codes.fresh == (settings.tokenizer.bottleneck != "gaussian")
    assert set(SCALES) == {"digits", "cifar10", "emoji64", "emoji128", "paper"}


def test_probabilities_come_back_to_a_255th():
    probs = torch.rand(4, 3, 2, 7, generator=torch.Generator().manual_seed(0))
    probs[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    key = CacheKey("t", "d", (3, 2, 7), images=4, flips=False, draws=0, seed=0, values="probabilities")
    rows = to_rows(probs, key)
    assert rows.shape == (4, 42) == (4, key.row_bytes) and rows.dtype == np.uint8
    again = from_rows(torch.from_numpy(rows), key)
    assert (again - to_tokens(probs)).abs().max() <= 0.5 / 255 + 1e-7
    assert again[0, 0, :2].tolist() == [0, 1]  # what is certain stays certain


def test_each_step_draws_anew_from_the_probabilities(faithful):
    """The mean of the codes that 300 visits of an image see is the encoder's y.

    A bit lies beyond 4.5 deviations by chance 7e-6, so that 10 of 256 do with a probability below 1e-30.
    """
    stage = staged(faithful)
    cache, images = CodeCache(faithful / "codes"), np.zeros(300, np.int64)
    assert cache.key.values == "probabilities" and cache.views == 1
    codes = stage.codes(Batch(cache.rows(images), None, None, range(300)))[0].float()
    probs = from_rows(cache.rows(np.zeros(1, np.int64)), cache.key)
    assert set(codes.unique().tolist()) == {0, 1}
    deviation = (probs * (1 - probs) / 300).sqrt()
    assert ((codes.mean(0) - probs[0]).abs() > 4.5 * deviation[0] + 1e-6).sum() < 10
    assert torch.equal(cache.read(images[:2])[0], cache.read(images[:1])[0])  # for a report, always the same


def test_batches_are_drawn_by_their_place_in_the_training_alone(faithful):
    """The same step twice gives the same codes; two visits of the same image give two codes."""
    stage = staged(faithful)
    first = [stage.codes(batch)[0] for batch in itertools.islice(stage.batches(0), 3)]
    again = [stage.codes(batch)[0] for batch in itertools.islice(stage.batches(1), 2)]
    assert all(torch.equal(a, b) for a, b in zip(first[1:], again, strict=True))
    row = stage.cache.rows(np.zeros(1, np.int64))
    once, later = (Batch(row, None, None, places) for places in (range(1), range(1, 2)))
    assert not torch.equal(stage.codes(once)[0], stage.codes(later)[0])


def test_a_stopped_faithful_training_ends_in_the_same_weights(faithful, tmp_path, tiny_overrides):
    import shutil

    found = []
    for name, stops in (("whole", [4]), ("halves", [2, 4])):
        shutil.copytree(faithful, tmp_path / name, ignore=shutil.ignore_patterns("prior", "checkpoints"))
        run = RunFolder(tmp_path / name)
        run.record("prior", goal=None)
        for steps in stops:
            overrides = [f"prior_training.steps={steps}", "prior_training.decay=constant"]
            Recipe(run.adopt(None, overrides, None), run, lambda _: None).train_prior()
        found.append(load_file(run.prior / "model.safetensors"))
    whole, halves = found
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)


def test_without_an_average_the_last_weights_are_kept_and_without_clipping_a_step_is_whole(tmp_path, tiny_overrides):
    """SGD would show it plainly; Adam's first step does not depend on the gradient's size, its second does."""
    weights = {}
    for clip in (0, 1e-4, 1e30):
        run = RunFolder(tmp_path / f"clip{clip}")
        overrides = [*tiny_overrides, f"tokenizer_training.clip_norm={clip}", "tokenizer_training.steps=3"]
        Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None).train_tokenizer()
        weights[clip] = load_file(run.tokenizer / "model.safetensors")
    assert all(torch.equal(weights[0][name], weights[1e30][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[1e-4][name]) for name in weights[0])


@pytest.mark.parametrize(
    "overrides",
    [
        ["codes.fresh=true", "codes.draws=0"],
        ["prior_training.clip_norm=-1"],
    ],
)
def test_what_cannot_be_is_refused(overrides):
    with pytest.raises(SettingError):
        load_settings("digits", overrides=overrides)


def test_only_bits_are_drawn_anew_so_other_codes_may_have_no_draws():
    assert load_settings("emoji64", overrides=[*REAL, "codes.draws=0"]).codes.fresh  # of no effect
    with pytest.raises(SettingError, match=r"set codes\.fresh=false"):
        load_settings("emoji64", overrides=["codes.draws=0"])
    assert load_settings("emoji64", overrides=["codes.draws=0", "codes.fresh=false"]).codes.draws == 0


@pytest.mark.parametrize(
    ("bottleneck", "told"),
    [
        ([*REAL, "tokenizer.code_bits=6", "codes.draws=2"], (4 * 4 * 6 * 2 * 2, "2 views")),
        ([*REAL, "codes.draws=0"], (4 * 4 * 32 * 2, "1 views")),
        (["tokenizer.bottleneck=vq", "tokenizer.code_bits=8", "prior.soft_targets=false"], (4 * 4, "1 views")),
        ([], (4 * 4 * 32, "1 of probabilities")),
        (["codes.fresh=false", "codes.draws=3"], (4 * 4 * 4 * 3, "3 views")),
    ],
)
def test_the_cache_that_info_foretells_is_the_one_that_is_written(tmp_path, tiny_overrides, capsys, bottleneck, told):
    """Over a preset that keeps probabilities."""
    size, unit = told
    overrides = ["tokenizer.code_bits=32", "codes.fresh=true", *bottleneck]
    assert main(["info", "digits", "--images", "100000", *overrides]) == 0
    assert f"{100_000 * size / 2**20:,.1f} MiB ({unit})" in capsys.readouterr().out
    run = RunFolder(tmp_path / "run")
    made = Recipe(run.adopt("digits", [*tiny_overrides, *overrides], "digits"), run, lambda _: None)
    made.train_tokenizer()
    cache = made.encode()
    rows = sum(path.stat().st_size for path in run.codes.glob("*.bin"))
    assert rows == len(cache) * size, sorted(run.codes.iterdir())


def test_the_cost_of_the_cache_is_told(capsys):
    assert main(["info", "churches256", "codes.fresh=true", "--images", "1000"]) == 0
    told = capsys.readouterr().out
    assert f"{1000 * 2 * 8192 / 2**20:,.1f} MiB (2 of probabilities)" in told and math.log2(8192) == 13
