import dataclasses
import re
import sys

import pytest
import torch
import yaml

from bld.errors import CheckpointError, SettingError
from bld.planning.cost import describe
from bld.training.accelerator import make_accelerator
from bld.training.config import known_keys, load_settings, preset_names
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings, leaves, settings_tree

PAPER = {"bedrooms256", "churches256", "ffhq256", "celebahq256", "imagenet256", "ffhq1024", "celebahq1024"}
TABLE_4 = {f"bedrooms256{suffix}" for suffix in ("-vq", "-real", "-8x8", "-8x8-vq", "-8x8-real")}
SHIPPED = PAPER | TABLE_4 | {"digits", "cifar10", "emoji64", "photos64", "photos128"}


def test_the_papers_and_the_small_presets_are_shipped():
    assert set(preset_names()) == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_preset_loads_and_survives_being_written_down(name):
    settings = load_settings(preset=name)
    tree = yaml.safe_load(yaml.safe_dump(settings_tree(settings)))
    assert load_settings(base=tree) == settings


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_papers_presets_hold_the_papers_numbers(name):
    s = load_settings(preset=name)
    large = name.endswith("1024")
    assert s.tokenizer.code_shape == ((32, 32, 64) if large else (16, 16, 64 if name == "imagenet256" else 32))
    assert s.tokenizer.factor == (32 if large else 16)
    assert (s.objective.mse, s.objective.perceptual, s.objective.adversarial) == (1, 1, 1)
    assert s.objective.adversarial_weight == "fixed"
    assert (s.tokenizer_training.batch_size, s.tokenizer_training.learning_rate) == (8, 5e-4)
    assert (s.prior.depth, s.prior.dim, s.prior.heads) == ((24, 768, 12) if name == "imagenet256" else (24, 512, 8))
    assert s.prior_training.learning_rate == 1e-4
    assert s.prior_training.batch_size == (16 if large else 256 if name == "imagenet256" else 32)
    assert s.tokenizer_training.warmup_steps == s.prior_training.warmup_steps == 10_000
    assert s.prior.vlb_weight == 0.1
    assert s.sampling.temperature == 0.9
    assert s.sampling.guidance_scale == (3.0 if name == "imagenet256" else 1.0)
    assert s.diffusion.schedule == "linear" and s.diffusion.target == "flip"


def test_words_change_single_leaves_and_nothing_else():
    before = dict(leaves(settings_tree(load_settings(preset="digits"))))
    after = dict(leaves(settings_tree(load_settings("digits", overrides=["prior.dim=96", "data.flip=true"]))))
    assert {key for key in before if before[key] != after[key]} == {"prior.dim", "data.flip"}


def test_settings_are_built_once_and_values_that_only_look_alike_are_checked_each_for_itself():
    assert load_settings("digits", overrides=["seed=1"]) is load_settings("digits", overrides=["seed=1"])
    assert load_settings("digits", overrides=["seed=2"]).seed == 2
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(SettingError, match="seed"):
            load_settings("digits", overrides=["seed=one"])
    assert load_settings(overrides=["prior.evidence=true"]).prior.evidence is True
    with pytest.raises(SettingError, match="evidence"):
        load_settings(overrides=["prior.evidence=1"])


def test_a_yaml_file_is_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("prior: {dim: 64}\nseed: 5\n")
    settings = load_settings(preset=str(path))
    assert (settings.prior.dim, settings.seed) == (64, 5)


@pytest.mark.parametrize("text", ["prior.dim: 64\nseed: 5\n", "prior: {dim: 64, depth: 2}\nprior.dim: 64\n"])
def test_dotted_keys_of_a_yaml_file_are_the_same_settings(text, tmp_path):
    """Over its base, and under the command line; config.yaml, edited by hand, may have them too."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: digits\n{text}")
    assert load_settings(str(path)).prior.dim == 64
    assert load_settings(str(path), overrides=["prior.dim=32"]).prior.dim == 32
    assert load_settings(str(path), over={"prior": {"dim": 96}}).prior.dim == 96
    run = RunFolder(tmp_path / "run")
    run.adopt("digits", [], "digits")
    run.config.write_text("prior.dim: 64\ndata: {location: digits}\n")
    assert run.adopt(None, ["prior.dim=32"], None).prior.dim == 32


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"prior: {dim: 64}\nprior.dim: 32\n", r"prior\.dim=64 and prior\.dim=32"),
        (b"prior: 3\nprior.dim: 32\n", r"prior=3 and prior\.dim=32"),
        (b"prior: {dim: 64}\nprior: {depth: 2}\n", r"the key prior is there twice"),
        (b"on: 1\n", r"the key True, .*quote"),
        (b"prior: {8: 1}\n", r"the key prior\.8, .*quote"),
        ("# größer\nseed: 1\n".encode("latin-1"), r"save it as UTF-8"),
        ("seed: 1\n".encode("utf-16"), r"save it as UTF-8"),
        (b"seed: 2020-13-45\n", r"not valid YAML"),
    ],
)
def test_a_yaml_file_that_cannot_be_meant_is_refused_in_one_sentence(content, expected, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=rf"mine\.yaml .*{expected}") as caught:
        load_settings(str(path))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_config_in_another_encoding_is_called_damaged(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.adopt("digits", [], "digits")
    run.config.write_bytes("# größer\nseed: 1\n".encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.yaml is damaged"):
        run.settings()


def test_a_preset_holds_only_what_it_changes_of_its_base(tmp_path):
    """A chain of bases: the file nearest to the name wins, leaf by leaf."""
    middle, mine = tmp_path / "middle.yaml", tmp_path / "mine.yaml"
    middle.write_text("base: cifar10\nprior: {dim: 64, depth: 2}\n")
    mine.write_text(f"base: {middle}\nprior: {{depth: 3}}\n")
    expected = load_settings("cifar10", overrides=["prior.dim=64", "prior.depth=3"])
    assert load_settings(str(mine)) == dataclasses.replace(expected, preset=str(mine))


def test_a_base_that_is_not_there_or_leads_in_a_circle_is_refused_in_one_sentence(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("base: cifar\n")
    with pytest.raises(SettingError, match=r"^Unknown preset 'cifar'\..*'cifar10'\?$"):
        load_settings(str(one))
    one.write_text(f"base: {two}\n")
    two.write_text(f"base: {one}\n")
    with pytest.raises(SettingError, match=r"one\.yaml, .*two\.yaml name each other as base, in a circle\.$"):
        load_settings(str(one))


@pytest.mark.parametrize(
    "word, expected",
    [
        ("prior.dmi=3", r"'prior\.dmi'.*'prior\.dim'\?"),
        ("dim=3", r"'dim'.*'prior\.dim'\?"),
        ("prior.dim=wide", r"prior\.dim.*wide"),
        ("prior.dim=1.5", r"prior\.dim.*1\.5"),
        ("prior=3", "'prior'"),
        ("prior.dim", r"'prior\.dim'.*key=value"),
        ("prior.dim=[1", r"prior\.dim, '\[1'.*YAML"),
        ("prior.heads=7", r"prior\.dim .*prior\.heads \(7\)"),
        ("diffusion.target=noise", r"diffusion\.target.*'z0'.*noise"),
        ("diffusion.schedule=cosin", r"schedule 'cosin'.*'cosine'\?"),
        ("diffusion.schedule=table", "schedule 'table' .*`table`"),
        ("tokenizer.image_size=250", r"\b250 .* 256\b"),
        ("tokenizer.code_bits=0", r"tokenizer\.code_bits is 0\b.*\b1 to 65536"),
        ("objective.mse=-1", r"objective\.mse .*\b0 or more, not -1\b"),
        ("prior_training.batch_size=0", r"^prior_training\.batch_size .*at least 1, not 0\b"),
        ("prior_training.learning_rate=0", r"^prior_training\.learning_rate .*above 0, not 0\b"),
        ("prior.label_dropout=2", r"prior\.label_dropout .*\b0 to 1, not 2\b"),
        ("sampling.steps=1000", r"sampling\.steps .*diffusion\.steps .*not 1000\b"),
        ("codes.draws=-1", r"codes\.draws .*\b0 or more, not -1\b"),
        ("data.workers=-1", r"data\.workers .*\b0 or more, not -1\b"),
        ("data.held_out=0", r"data\.held_out .*above 0, not 0\b"),
        ("prior_training.beta1=2", r"^prior_training\.beta1 .*below 1, not 2\b"),
        ("tokenizer_training.ema_decay=1", r"^tokenizer_training\.ema_decay .*below 1, not 1\b"),
        ("tokenizer.in_channels=1", r"tokenizer\.in_channels=1 .*RGB"),
        ("seed=2020-13-45", "seed, '2020-13-45'.*YAML"),
        ("sampling.temperature=0", r"sampling\.temperature .*above 0, not 0\b"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence_that_names_it(word, expected):
    with pytest.raises(SettingError) as caught:
        load_settings(overrides=[word])
    message = str(caught.value)
    assert re.search(expected, message), message
    assert "\n" not in message and message.endswith((".", "?"))


def test_a_target_that_cannot_skip_steps_is_not_trained_for_fewer():
    with pytest.raises(SettingError, match=r"sampling\.steps=0"):
        load_settings("digits", overrides=["diffusion.target=previous"])


def test_a_preset_changes_a_base_only_where_it_speaks():
    base = settings_tree(load_settings("digits", overrides=["seed=3"]))
    assert load_settings("emoji64", base).seed == 3


def test_the_papers_unconditional_presets_use_no_labels():
    for name in PAPER:
        assert load_settings(preset=name).prior.class_conditional == (name == "imagenet256")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(SettingError, match=r"'cifar'.*'cifar10'\?"):
        load_settings(preset="cifar")


def test_every_leaf_is_documented():
    sections = [getattr(Settings(), field.name) for field in dataclasses.fields(Settings)]
    for section in filter(dataclasses.is_dataclass, sections):
        told = "\n".join(kind.__doc__ or "" for kind in type(section).__mro__ if dataclasses.is_dataclass(kind))
        for field in dataclasses.fields(section):
            assert f"\n        {field.name}: " in told, f"{type(section).__name__}.{field.name}"


def test_known_keys_are_the_leaves():
    assert "prior.dim" in known_keys() and "prior" not in known_keys()


def test_the_cost_of_the_papers_model_is_the_papers():
    """Table 2 states 172M parameters for the class-conditional prior; one forward is about 42 GFLOP (unconditional)."""
    imagenet = dict(describe(load_settings(preset="imagenet256"), 1_281_167, 1000))
    assert int(imagenet["prior parameters"].replace(",", "")) == pytest.approx(172e6, rel=0.01)
    churches = dict(describe(load_settings(preset="churches256"), 1000, 0))
    assert churches["one denoising step, per image"] == "42.07 GFLOP"
    assert churches["code"].endswith("1,024 bytes")


def test_a_cpu_keeps_its_float32_products_exact_beside_bf16():
    for precision in ("bf16", "float32"):
        make_accelerator(precision)
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("kind", ["absorbing", "autoregressive"])
def test_patches_are_refused_before_any_work_where_tokens_are_single_positions(kind):
    assert load_settings("digits", overrides=["prior.patch_size=2"]).prior.patch_size == 2
    with pytest.raises(SettingError, match=r"prior\.patch_size.*2"):
        load_settings("digits", overrides=["prior.patch_size=2", f"prior.kind={kind}"])


GAUSSIAN = ("tokenizer.bottleneck=gaussian", "prior.kind=gaussian", "codes.draws=0", "codes.fresh=false")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*GAUSSIAN, "diffusion.schedule=sigmoid"], r"linear and cosine, not 'sigmoid'"),
        ([*GAUSSIAN, "objective.code_entropy=0.1"], r"objective\.code_entropy=0\.1 .*tokenizer\.bottleneck=gaussian"),
    ],
)
def test_what_a_later_stage_cannot_do_is_refused_before_the_first(words, expected, monkeypatch):
    """Without diffusers, too, which knowing this takes no part of."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert load_settings("digits", overrides=[*GAUSSIAN])
    with pytest.raises(SettingError, match=expected):
        load_settings("digits", overrides=words)
