"""Runs that begin with a given tokenizer, or with the weights of another model."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from bld import BinaryLatentDiffusionPipeline
from bld.cli import main
from bld.serialization.models import load_prior, load_tokenizer, save_model, save_process, tokenizer_hash
from bld.training.config import load_settings
from bld.training.init_from import InitRequest
from bld.training.learning_rate import StageClock
from bld.training.run_folder import RunFolder
from bld.training.stages.prior import build_network

PRIOR_ONLY = ["prior_training.steps=4", "prior_training.batch_size=32", "prior_training.previews=1", "codes.draws=2"]
PRIOR_ONLY += ["mixed_precision=float32"]
TOKENIZER_ONLY = ["tokenizer_training.steps=4", "tokenizer_training.batch_size=32", "tokenizer_training.previews=1"]
TOKENIZER_ONLY += ["mixed_precision=float32"]


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused, and gives its one sentence."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.fixture(scope="module")
def fine_tuned(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior trained on from `trained_run`, on the same images."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    words = [
        "train-prior",
        "--data",
        "digits",
        "--preset",
        "digits",
        "--out",
        str(out),
        "--init-from",
        str(trained_run),
    ]
    assert main([*words, *PRIOR_ONLY]) == 0
    return out


def metrics(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of each time it was measured."""
    return [(line["step"], line[name]) for line in RunFolder(run).read_metrics() if name in line]


# -- a given tokenizer ----------------------------------------------------------------------------------------


def test_one_command_trains_a_prior_on_a_tokenizer_of_another_shape_than_the_preset_s(
    trained_run, tmp_path, image_folder, capsys, refused
):
    """Bits, image size and shape follow the tokenizer; the same command goes on, also once its folder is gone."""
    shutil.copytree(trained_run / "tokenizer", tmp_path / "given")
    out, data = tmp_path / "run", image_folder(80, size=40, classes=2)
    words = ["train-prior", "--data", str(data), "--out", str(out), "--tokenizer", str(tmp_path / "given")]
    small = ["prior.dim=32", "prior.depth=1", "prior.heads=2"]
    assert main([*words, "--preset", "emoji64", *PRIOR_ONLY, *small]) == 0
    settings = RunFolder(out).settings()
    assert settings.tokenizer == load_tokenizer(trained_run / "tokenizer").config  # 8 pixels, not emoji64's 64
    assert tokenizer_hash(load_tokenizer(out / "tokenizer")) == tokenizer_hash(
        load_tokenizer(trained_run / "tokenizer")
    )
    assert RunFolder(out).progress()["tokenizer"]["given"] == str(tmp_path / "given")
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(out)
    assert pipe.image_size == 8 and pipe.classes == ["class0", "class1"]
    assert main(["report", str(out)]) == 0

    shutil.rmtree(tmp_path / "given")
    capsys.readouterr()
    assert main([*words, "--preset", "emoji64", *PRIOR_ONLY, *small]) == 0
    assert "trained already" in capsys.readouterr().out
    assert main(["train-prior", "--out", str(out), "prior_training.steps=5"]) == 0
    assert "from step 4" in capsys.readouterr().out
    sentence = refused("train-tokenizer", "--out", out)
    assert str(tmp_path / "given") in sentence and "train-tokenizer --init-from" in sentence


def test_train_uses_a_given_tokenizer_and_skips_to_the_prior(trained_run, tmp_path, capsys):
    words = ["train", "--data", "digits", "--preset", "digits", "--out", str(tmp_path / "run")]
    prior = ["prior.dim=32", "prior.depth=1", "prior.heads=2"]
    assert main([*words, "--tokenizer", str(trained_run), "--budget", "3s", *prior, *PRIOR_ONLY]) == 0
    assert f"that of {trained_run} " in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "checkpoints" / "tokenizer").exists()


def test_a_preset_is_chosen_by_the_tokenizer_and_a_setting_against_it_refused(
    trained_run, tmp_path, image_folder, refused
):
    words = ("train-prior", "--data", image_folder(80, size=40), "--out", tmp_path / "run", "--tokenizer")
    against = refused(*words, trained_run, "tokenizer.code_bits=64")
    assert "tokenizer.code_bits=32" in against and "64" in against and "--init-from" in against
    assert f"{tmp_path} holds no finished" in refused(*words, tmp_path)
    assert f"{trained_run / 'prior'} holds no tokenizer" in refused(*words, trained_run / "prior")
    assert "no folder" in refused(*words, tmp_path / "nowhere" / "at" / "all")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_comes_too_late_for_a_run_that_has_one_but_not_if_it_is_the_same(
    run_copy, trained_run, tmp_path, refused
):
    tokenizer = load_tokenizer(trained_run / "tokenizer")
    with torch.no_grad():
        tokenizer.encoder.to_logits.bias += 1
    save_model(tmp_path / "other", tokenizer)
    words = ("train-prior", "--out", run_copy, "prior_training.steps=6", "--tokenizer")
    late = refused(*words, tmp_path / "other")
    assert str(run_copy) in late and "--tokenizer" in late and "--out" in late
    assert main([str(word) for word in (*words, trained_run)]) == 0
    assert "given" not in RunFolder(run_copy).progress()["tokenizer"]  # it was trained here, and may be trained on


# -- the weights of another -----------------------------------------------------------------------------------


def test_fine_tuning_a_prior_starts_at_the_source_s_loss_to_the_last_digit(fine_tuned, trained_run):
    first, last = metrics(fine_tuned, "held_out_loss")[0], metrics(trained_run, "held_out_loss")[-1]
    assert first == (0, last[1])
    assert metrics(fine_tuned, "held_out_loss")[-1][0] == 4
    assert not torch.equal(load_prior(fine_tuned / "prior").head.weight, load_prior(trained_run / "prior").head.weight)


def test_fine_tuning_a_tokenizer_starts_at_the_source_s_psnr(trained_run, tmp_path):
    words = ["train-tokenizer", "--data", "digits", "--preset", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--init-from", str(trained_run), *TOKENIZER_ONLY]) == 0
    first, last = metrics(tmp_path / "run", "held_out_psnr")[0], metrics(trained_run, "held_out_psnr")[-1]
    assert first == (0, last[1])


def test_a_start_that_outlasts_its_first_preview_is_looked_at_once(trained_run, tmp_path, monkeypatch):
    """As with a short time budget on a busy machine: no step is done yet and the next preview is due already."""
    calls = itertools.count()
    honest = StageClock.progress
    monkeypatch.setattr(StageClock, "progress", lambda c, step: max(honest(c, step), 0.5 if next(calls) > 1 else 0))
    words = ["train-prior", "--data", "digits", "--preset", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--init-from", str(trained_run), *PRIOR_ONLY, "prior_training.previews=2"]) == 0
    steps = [step for step, _ in metrics(tmp_path / "run", "held_out_loss")]
    assert steps == sorted(set(steps)) and steps[0] == 0


def test_the_architecture_comes_along_and_the_same_command_goes_on(fine_tuned, trained_run, capsys, refused):
    theirs, ours = RunFolder(trained_run).settings(), RunFolder(fine_tuned).settings()
    assert ours.prior == theirs.prior and ours.diffusion == theirs.diffusion and ours.prior.dim == 32
    assert RunFolder(fine_tuned).progress()["prior"]["init_from"] == str(trained_run)
    before = (fine_tuned / "prior" / "model.safetensors").read_bytes()
    words = ["train-prior", "--data", "digits", "--preset", "digits", "--out", str(fine_tuned)]
    assert main([*words, "--init-from", str(trained_run), *PRIOR_ONLY]) == 0
    assert "trained already" in capsys.readouterr().out
    assert (fine_tuned / "prior" / "model.safetensors").read_bytes() == before
    late = refused(*words, "--init-from", trained_run / "prior")
    assert str(fine_tuned) in late and "--init-from" in late and "--out" in late


def test_a_checkpoint_wins_over_the_weights_a_run_began_with(fine_tuned, trained_run, tmp_path, capsys):
    shutil.copytree(fine_tuned, tmp_path / "run")
    assert main(["train-prior", "--out", str(tmp_path / "run"), "prior_training.steps=5"]) == 0
    out = capsys.readouterr().out
    assert "from step 4" in out and str(trained_run) not in out
    assert [step for step, _ in metrics(tmp_path / "run", "held_out_loss")] == [0, 4, 5]


def test_a_run_whose_checkpoints_are_all_damaged_begins_with_the_other_s_weights_again(
    fine_tuned, trained_run, tmp_path, capsys
):
    shutil.copytree(fine_tuned, tmp_path / "run")
    for checkpoint in RunFolder(tmp_path / "run").checkpoints("prior").list():
        (checkpoint / "state.json").write_text("{")
    assert main(["train-prior", "--out", str(tmp_path / "run"), "prior_training.steps=5"]) == 0
    out = capsys.readouterr().out
    assert "begins anew" in out and f"begins with the weights of {trained_run}" in out
    assert metrics(tmp_path / "run", "held_out_loss")[0] == metrics(fine_tuned, "held_out_loss")[0]


def test_train_begins_both_networks_with_the_other_s(trained_run, tmp_path, capsys):
    words = ["train", "--data", "digits", "--preset", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--init-from", str(trained_run), *PRIOR_ONLY, *TOKENIZER_ONLY]) == 0
    out = capsys.readouterr().out
    assert out.count(f" of {trained_run}: 100.0% ") == 2


def begun(words: list[str], out: Path, capsys) -> str:
    """What is said of the weights that a prior begins with."""
    capsys.readouterr()
    assert main([*words, "--out", str(out), *PRIOR_ONLY]) == 0
    return next(line for line in capsys.readouterr().out.splitlines() if re.search(r": [\d.]+% are kept", line))


@pytest.mark.parametrize("entries", [True, False])
@pytest.mark.parametrize("kind", ["autoregressive", "absorbing"])
def test_a_prior_over_a_codebook_comes_along_by_its_entries_or_by_their_bits(kind: str, entries: bool, tmp_path: Path):
    settings = load_settings("digits", overrides=[
        "tokenizer.bottleneck=vq", "tokenizer.code_bits=4", f"prior.kind={kind}", "prior.dim=32", "prior.depth=1",
        "prior.heads=2", f"prior.categorical={str(entries).lower()}", "prior.soft_targets=false"])  # fmt: skip
    shape = settings.tokenizer.code_shape
    process = settings.process(shape)
    save_model(tmp_path / "from" / "prior", build_network(process, settings.denoiser(shape, 0)))
    save_process(tmp_path / "from" / "diffusion", process)
    brought = InitRequest.from_options(RunFolder(tmp_path / "run"), ("prior",), None, str(tmp_path / "from")).settings()
    assert brought["prior"]["categorical"] == entries
    again = load_settings("digits", overrides=["tokenizer.bottleneck=vq", "tokenizer.code_bits=4"], over=brought)
    assert again.denoiser(shape, 0) == settings.denoiser(shape, 0)


def test_classes_are_kept_by_their_names_and_new_ones_begin_as_no_class(trained_run, tmp_path, image_folder, capsys):
    data = image_folder(80, classes=2)
    (data / "class0").rename(data / "7")
    words = ["train-prior", "--data", str(data), "--preset", "digits", "--init-from", str(trained_run)]
    said = begun([*words, "prior_training.learning_rate=1e-12"], tmp_path / "run", capsys)
    assert re.search(r"\b1 of 2 classes\b.* no class\b", said)
    theirs, ours = load_prior(trained_run / "prior"), load_prior(tmp_path / "run" / "prior")
    assert theirs.config.num_classes == 10 and ours.config.num_classes == 2
    rows = [theirs.classes.weight[7], theirs.classes.weight[10], theirs.classes.weight[10]]
    torch.testing.assert_close(ours.classes.weight, torch.stack(rows), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.head.weight, theirs.head.weight, atol=1e-6, rtol=0)


def test_what_another_number_of_steps_or_bits_leaves_is_said(trained_run, tmp_path, capsys, refused):
    words = ["train-prior", "--data", "digits", "--preset", "digits", "--init-from", str(trained_run)]
    said = begun([*words, "diffusion.steps=32", "diffusion.target=flip", "sampling.steps=8"], tmp_path / "a", capsys)
    assert re.search(r"\bstep\.table\b.* T = 64\b.* 32\b", said)
    assert re.search(r"diffusion\.target .*z0 .*flip", said)
    more = ["train-tokenizer", "--data", "digits", "--preset", "digits", "--init-from", str(trained_run)]
    assert main([*more, "--out", str(tmp_path / "bits"), "tokenizer.code_bits=16", *TOKENIZER_ONLY]) == 0
    assert "decoder.embed.weight, encoder.to_logits.bias, encoder.to_logits.weight " in capsys.readouterr().out
    words = ["train-prior", "--init-from", str(trained_run)]
    said = begun([*words, "--data", "digits"], tmp_path / "bits", capsys)
    assert "embed.weight, head.bias, head.weight " in said and "another tokenizer" in said
    sentence = refused(*words, "--data", "digits", "--out", tmp_path / "b", "prior.dim=64", "prior.depth=6")
    assert re.search(r"\b\d+% of the prior .*prior\.….*--init-from", sentence)


def test_a_prior_alone_begins_one_without_classes(trained_run, tmp_path, image_folder, capsys):
    words = ["train-prior", "--data", str(image_folder(80)), "--preset", "digits", "--tokenizer", str(trained_run)]
    said = begun([*words, "--init-from", str(trained_run / "prior")], tmp_path / "run", capsys)
    assert "class tokens" in said
    assert json.loads((tmp_path / "run" / "model_index.json").read_text())["classes"] == []


def test_what_cannot_begin_a_stage_is_refused(trained_run, tmp_path, refused):
    words = ("--data", "digits", "--preset", "digits", "--out", tmp_path / "run", "--init-from")
    assert f"{trained_run / 'tokenizer'} holds no prior" in refused("train-prior", *words, trained_run / "tokenizer")
    assert f"{trained_run / 'prior'} holds no tokenizer" in refused("train-tokenizer", *words, trained_run / "prior")
    assert not (tmp_path / "run").exists()
