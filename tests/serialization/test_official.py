"""Public checkpoints, converted, compute what the public code computes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bld import BinaryLatentDiffusionPipeline
from bld.cli import main
from bld.codes import to_tokens
from bld.diffusion import sample_codes
from bld.errors import CheckpointError, SettingError
from bld.seeding import keyed_draws, uniform
from bld.serialization import official
from bld.serialization.models import load_prior, load_process, load_tokenizer
from bld.serialization.official import convert, read_state
from bld.serialization.official_layout import OfficialOptions
from public_code import Layout, decode, denoise, encode, make_autoencoder, make_prior, sample, write

FIXTURES = Path(__file__).parents[3] / "shared" / "official-checkpoint"

LAYOUTS = {
    "plain": Layout(),
    "public": Layout(ch_mult=(1, 1, 2), res_blocks=2, gen_mul=1.5, norm_first=True, emb=64, classes=5, heads=2),
    "flat, no attention": Layout(ch_mult=(2,), size=8, attn=(), emb=32, text=24),
    "every resolution": Layout(attn=(16, 8), emb=96, norm_first=True),
}


def quiet(_: str) -> None: ...


def written(folder: Path, layout: Layout, **options) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LOGDIR of both stages."""
    autoencoder = make_autoencoder(layout)
    prior = make_prior(layout, autoencoder, **options)
    write(folder, "binaryae", autoencoder)
    write(folder, "bld", prior)
    return autoencoder, prior


@pytest.fixture
def converted(tmp_path):
    """(LOGDIR's weights, the pipeline made of them)."""

    def make(layout: Layout, **options):
        states = written(tmp_path / "log", layout)
        convert(tmp_path / "log", tmp_path / "out", OfficialOptions(heads=layout.heads, **options), quiet)
        return *states, BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "out")

    return make


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_networks_of_any_layout_compute_the_same(converted, name):
    layout = LAYOUTS[name]
    autoencoder, prior, pipe = converted(layout)
    images = torch.rand(3, 3, layout.size, layout.size) * 2 - 1
    expected = encode(autoencoder, layout, images)
    assert float(expected.std()) > 0.1
    probs = pipe.tokenizer.encode_probs(images)
    torch.testing.assert_close(probs.permute(0, 3, 1, 2), expected, atol=1e-5, rtol=0)
    bits = (expected > 0.5).float()
    images = decode(autoencoder, layout, bits)
    torch.testing.assert_close(pipe.tokenizer.decode(bits.permute(0, 2, 3, 1)), images, atol=1e-4, rtol=0)
    pipe.enable_tiling(3)
    torch.testing.assert_close(pipe.tokenizer.decode(bits.permute(0, 2, 3, 1)), images, atol=1e-4, rtol=0)
    z, t = to_tokens(bits.permute(0, 2, 3, 1)), torch.tensor([1, layout.steps, 3])
    for condition in (None, torch.tensor([0, 4, 2]) if layout.classes else torch.randn(3, layout.text)):
        if condition is not None and not layout.classes and not layout.text:
            continue
        expected = denoise(prior, layout, z, t, condition)
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(pipe.prior(z, t, condition), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("inpainting", [False, True])
def test_the_plugin_posterior_with_clean_bits_replays_the_public_sampler(converted, inpainting):
    """The same uniform draws give the same bits; no draw lies so near to its probability that rounding could tell."""
    layout = Layout(steps=12)
    _, prior, pipe = converted(layout)
    shape = (4, 64, layout.bits)
    known = torch.rand(shape) < 0.5
    keep = (torch.rand(4, 64, 1) < 0.5).expand(shape) if inpainting else None
    generators = keyed_draws(0, "sample", range(4))
    draws = [uniform(shape, generators) for _ in range(layout.steps)]
    expected = sample(prior, layout, draws, known.float(), keep)
    assert 0.1 < expected.mean() < 0.9
    codes = sample_codes(
        pipe.prior,
        shape,
        pipe.diffusion,
        temperature=0.9,
        generators=keyed_draws(0, "sample", range(4)),
        known=known if inpainting else None,
        mask=~keep if inpainting else None,
        known_bits="clean",
    )
    assert torch.equal(codes, expected.to(torch.uint8))
    exact = sample_codes(
        pipe.prior, shape, pipe.with_posterior("exact").diffusion, generators=keyed_draws(0, "sample", range(4))
    )
    assert not torch.equal(exact, codes)


@pytest.mark.parametrize("name", ["uncond", "classes"])
@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not part of the repository")
@torch.no_grad()
def test_the_fixtures_give_what_the_public_code_gave(tmp_path, name):
    convert(FIXTURES / name, tmp_path / "out", OfficialOptions(heads=4), quiet)
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "out")
    expected = load_file(FIXTURES / name / "expected.safetensors")
    probs = pipe.tokenizer.encode_probs(expected["images"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(probs, expected["bit_probabilities"], atol=1e-4, rtol=0)
    sure = (expected["bit_probabilities"] - 0.5).abs() > 1e-4
    codes = pipe.tokenizer.encode(expected["images"]).permute(0, 3, 1, 2)
    assert torch.equal(codes[sure].float(), expected["codes"][sure])
    images = pipe.tokenizer.decode(expected["codes"].permute(0, 2, 3, 1))
    torch.testing.assert_close(images, expected["reconstruction"], atol=1e-4, rtol=0)
    logits = pipe.prior(expected["z_t"], expected["t"], expected.get("labels"))
    torch.testing.assert_close(logits, expected["denoiser_logits"], atol=1e-4, rtol=0)
    assert pipe.diffusion.steps == {"uncond": 16, "classes": 32}[name]
    assert len(pipe(2, generator=0, num_inference_steps=2).images) == 2


@pytest.mark.parametrize("is_there", [False, True])
def test_an_interrupted_conversion_leaves_nothing_and_can_be_repeated(is_there, tmp_path, monkeypatch, capsys):
    written(tmp_path / "log", Layout())
    out, saved = tmp_path / "out", official.save_process
    if is_there:
        out.mkdir()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(official, "save_process", stopped)
    command = ["convert", "official", str(tmp_path / "log"), "--out", str(out), "--heads", "4"]
    assert main(command) == 130 and "Nothing was kept" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"log", *(["out"] * is_there)} and not [*out.glob("*")]
    monkeypatch.setattr(official, "save_process", saved)
    assert main(command) == 0 and BinaryLatentDiffusionPipeline.from_pretrained(out).image_size == 16
    assert {path.name for path in tmp_path.iterdir()} == {"log", "out"}


def test_an_autoencoder_alone_becomes_a_tokenizer_of_256_pixels_that_reconstructs(tmp_path, image_folder, capsys):
    write(tmp_path / "log", "binaryae", make_autoencoder(Layout(size=64, attn=(), ch_mult=(1, 1, 1, 1, 1, 1))))
    command = ["convert", "official", str(tmp_path / "log"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "256×256 pixels as codes of 8×8×6" in capsys.readouterr().out
    assert not (tmp_path / "out" / "model_index.json").exists()
    assert main([*command[:-1], str(tmp_path / "small"), "--image-size", "32"]) == 0
    assert main(["reconstruct", str(tmp_path / "small"), "--data", str(image_folder(4, size=32))]) == 0
    assert "PSNR" in capsys.readouterr().out


def test_the_step_of_the_files_is_the_newest_average_or_the_one_asked_for(tmp_path):
    states = {step: make_autoencoder(Layout(), seed=step) for step in (5, 90, 100, 200)}
    for step, state in states.items():
        write(tmp_path, "binaryae", state, step, average=step != 200)

    def taken(**options) -> int:
        out = tmp_path / str(options)
        convert(tmp_path, out, OfficialOptions(image_size=16, **options), quiet)
        weight = load_tokenizer(out / "tokenizer").encoder.conv_in.weight
        return next(n for n, state in states.items() if torch.equal(state["ae.encoder.blocks.0.weight"], weight))

    assert taken() == 100  # of the averages; not by the order of their names
    assert taken(step=5) == 5 and taken(step=200) == 200
    with pytest.raises(CheckpointError, match=r"binaryae .* 7, .* 5, 90, 100, 200: .*--step"):
        taken(step=7)
    write(tmp_path, "binaryae", states[5], "0005")
    with pytest.raises(CheckpointError, match=r"step 5 twice .*0005"):
        convert(tmp_path, tmp_path / "twice", OfficialOptions(), quiet)


def test_a_prior_may_lie_in_another_folder_and_have_other_steps_than_its_autoencoder(tmp_path):
    layout = Layout()
    autoencoder = make_autoencoder(layout)
    write(tmp_path / "ae", "binaryae", autoencoder, 8100000)
    write(tmp_path / "prior", "bld", make_prior(layout, autoencoder), 960000)
    options = OfficialOptions(heads=4, step=960000)
    with pytest.raises(CheckpointError, match=r"no autoencoder: .*--autoencoder"):
        convert(tmp_path / "prior", tmp_path / "out", options, quiet)
    convert(tmp_path / "prior", tmp_path / "out", options, quiet, tmp_path / "ae")
    assert load_tokenizer(tmp_path / "out" / "tokenizer").config.image_size == 16
    write(tmp_path / "other", "binaryae", make_autoencoder(layout, seed=3))
    with pytest.raises(CheckpointError, match="another autoencoder"):
        convert(tmp_path / "prior", tmp_path / "new", options, quiet, tmp_path / "other")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", [0, 7])
def test_a_step_that_is_named_for_the_autoencoder_itself_is_never_another(tmp_path, step):
    write(tmp_path, "binaryae", make_autoencoder(Layout()), 5)
    with pytest.raises(CheckpointError, match=rf"no binaryae of step {step}, only 5"):
        convert(tmp_path, tmp_path / "out", OfficialOptions(heads=4, autoencoder_step=step), lambda _: None)


def test_the_number_of_steps_comes_from_the_schedule_or_is_64_and_contradictions_are_refused(tmp_path):
    layout = Layout(steps=10)
    autoencoder, prior = written(tmp_path / "log", layout)
    convert(tmp_path / "log", tmp_path / "a", OfficialOptions(heads=4), quiet)
    assert load_process(tmp_path / "a" / "diffusion").steps == load_prior(tmp_path / "a" / "prior").config.steps == 10
    with pytest.raises(SettingError, match=r"T = 10, not 64: .*--diffusion-steps"):
        convert(tmp_path / "log", tmp_path / "b", OfficialOptions(heads=4, steps=64), quiet)
    with pytest.raises(SettingError, match=r"\b16 pixels .*not 256: .*--image-size"):
        convert(tmp_path / "log", tmp_path / "b", OfficialOptions(heads=4, image_size=256), quiet)
    with pytest.raises(SettingError, match=r"\b12 heads .*--heads"):
        convert(tmp_path / "log", tmp_path / "b", OfficialOptions(), quiet)
    k = torch.tensor([1.0, 0.7, 0.2, 0.0])
    write(tmp_path / "log", "bld", {**prior, "scheduler.k_final": k})
    convert(tmp_path / "log", tmp_path / "table", OfficialOptions(heads=4), quiet)
    torch.testing.assert_close(load_process(tmp_path / "table" / "diffusion").schedule.k, k.double())
    write(tmp_path / "log", "bld", make_prior(layout, autoencoder, scheduler=False))
    convert(tmp_path / "log", tmp_path / "c", OfficialOptions(heads=4), quiet)
    convert(tmp_path / "log", tmp_path / "d", OfficialOptions(heads=4, steps=32, posterior="exact"), quiet)
    assert load_process(tmp_path / "c" / "diffusion").steps == 64
    assert load_process(tmp_path / "d" / "diffusion").steps == 32
    assert load_process(tmp_path / "d" / "diffusion").posterior == "exact"


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap",)


def damaged(name: str, path: Path, state: dict[str, Tensor]) -> None:
    first = "ae.encoder.blocks.0.weight"
    content = {
        "unknown entry": {**state, "ae.encoder.blocks.0.extra": torch.zeros(1)},
        "another network": {"model.weight": torch.zeros(2)},
        "a missing block": {n: t for n, t in state.items() if "encoder.blocks.3." not in n},
        "a missing tensor": {n: t for n, t in state.items() if n != "ae.encoder.blocks.1.conv2.weight"},
        "a missing embedding": {n: t for n, t in state.items() if "embed" not in n},
        "another width": {**state, "ae.quantize.proj.0.weight": torch.zeros(6, 5, 1, 1)},
        "no multiples": {**state, first: torch.zeros(31, 3, 3, 3)},
        "no tensors": {"step": 3},
        "no dict": [1, 2],
        "a pickle that acts": {"a": Trap()},
    }.get(name)
    if content is not None:
        torch.save(content, path)
    else:
        path.write_bytes(path.read_bytes()[:1000] if name == "cut short" else b"not a checkpoint")


@pytest.mark.parametrize(
    "name, words",
    {
        "unknown entry": "'ae.encoder.blocks.0.extra'",
        "another network": "public autoencoder?",
        "a missing block": "encoder.blocks",
        "a missing tensor": "'ae.encoder.blocks.1.conv2.weight'",
        "a missing embedding": "'ae.quantize.embed.weight'",
        "another width": "should be (",
        "no multiples": "no multiples",
        "no tensors": "named tensors",
        "no dict": "named tensors",
        "a pickle that acts": "(UnpicklingError)",
        "cut short": "cannot be read",
        "noise": "cannot be read",
    }.items(),
)
def test_other_files_are_refused_in_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    state = make_autoencoder(Layout())
    damaged(name, write(tmp_path / "log", "binaryae", state), state)
    assert main(["convert", "official", "log", "--out", "out", "--image-size", "16"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "trap").exists()


@pytest.mark.parametrize("error", [IndexError, AssertionError, AttributeError, TypeError, UnicodeDecodeError])
def test_whatever_a_damaged_file_makes_the_unpickler_raise_is_one_sentence(tmp_path, monkeypatch, error):
    words = ("utf-8", b"x", 0, 1, "no") if error is UnicodeDecodeError else ("pop from\nan empty list",)
    monkeypatch.setattr(torch, "load", raising(error(*words)))
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.*\({error.__name__}\).*whole") as refused:
        read_state(tmp_path / "a.th")
    assert len(str(refused.value).splitlines()) == 1


def raising(error):
    """A function that raises it, whatever it is given."""

    def raises(*_, **__):
        raise error

    return raises


def test_a_pickle_that_takes_from_an_empty_stack_is_one_sentence_and_a_full_memory_is_not_damage(tmp_path, monkeypatch):
    (tmp_path / "a.th").write_bytes(b".")
    with pytest.raises(CheckpointError, match=r"cannot be read .*\(IndexError\)"):
        read_state(tmp_path / "a.th")
    monkeypatch.setattr(torch, "load", raising(MemoryError()))
    with pytest.raises(MemoryError):
        read_state(tmp_path / "a.th")


def test_a_prior_of_another_design_names_what_has_no_place(tmp_path):
    _, prior = written(tmp_path / "log", Layout())
    write(tmp_path / "log", "bld", {**prior, "_denoise_fn.blocks.0.cross.kv.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"'_denoise_fn\.blocks\.0\.cross\.kv\.weight'"):
        convert(tmp_path / "log", tmp_path / "out", OfficialOptions(heads=4), quiet)
    write(tmp_path / "log", "bld", {**prior, "_denoise_fn.pos_emb": torch.zeros(1, 60, 32)})
    with pytest.raises(CheckpointError, match="60 positions"):
        convert(tmp_path / "log", tmp_path / "out", OfficialOptions(heads=4), quiet)


def test_wrong_folders_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        convert(tmp_path / "nowhere", tmp_path / "out", OfficialOptions(), quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty .*saved_models/binaryae_ema_STEP"):
        convert(tmp_path / "empty", tmp_path / "out", OfficialOptions(), quiet)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(CheckpointError, match=rf"{tmp_path / 'out'} .*--out"):
        convert(tmp_path / "empty", tmp_path / "out", OfficialOptions(), quiet)


def test_the_config_says_what_the_public_code_left_out(tmp_path):
    write(tmp_path / "log", "binaryae", make_autoencoder(LAYOUTS["public"]))
    convert(tmp_path / "log", tmp_path / "out", OfficialOptions(image_size=16), quiet)
    config = json.loads((tmp_path / "out" / "tokenizer" / "config.json").read_text())
    assert config["out_activation"] is False and config["features_dim"] == 0 and config["decoder_res_blocks"] == 3
    assert (
        config["attention_resolutions"] == [8] and config["norm_first"] and config["channel_multipliers"] == [1, 1, 2]
    )
    assert read_state(tmp_path / "log" / "saved_models" / "binaryae_ema_1000.th").keys()
