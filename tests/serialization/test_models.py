from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.errors import CheckpointError
from bld.priors import Denoiser, DenoiserConfig, GaussianDiffusion
from bld.serialization import models
from bld.serialization.models import (
    PipelineIndex,
    SamplingDefaults,
    load_index,
    load_prior,
    load_process,
    load_tokenizer,
    save_index,
    save_model,
    save_process,
    tokenizer_hash,
)
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder
from bld.training import checkpoints
from bld.training.checkpoints import CheckpointStore, TrainingState, pack_optimizer, unpack_optimizer

TOKENIZER = AutoencoderConfig(8, 4, 8, (1, 2), 1, attention_resolutions=(4,), embed_dim=8)
PRIOR = DenoiserConfig(4, 4, 4, steps=8, num_classes=2, dim=16, depth=2, heads=2, evidence="flip")


def tokenizer() -> BinaryAutoencoder:
    torch.manual_seed(0)
    return BinaryAutoencoder(TOKENIZER).eval()


def prior() -> Denoiser:
    torch.manual_seed(1)
    model = Denoiser(PRIOR, torch.linspace(-3, 0, 8)).eval()
    nn.init.normal_(model.head.weight)
    return model


# -- models -----------------------------------------------------------------------------------------------


def test_a_tokenizer_comes_back_with_identical_outputs(tmp_path: Path):
    model = tokenizer()
    save_model(tmp_path, model)
    loaded = load_tokenizer(tmp_path)
    images = torch.rand(2, 3, 8, 8)
    assert loaded.config == TOKENIZER and not loaded.training
    assert torch.equal(loaded.encode_probs(images), model.encode_probs(images))
    assert torch.equal(loaded.decode(model.encode(images)), model.decode(model.encode(images)))
    assert all(p.requires_grad for p in loaded.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_prior_comes_back_with_identical_outputs_and_its_evidence(tmp_path: Path):
    model = prior()
    save_model(tmp_path, model)
    loaded = load_prior(tmp_path)
    z_t, t, labels = torch.randint(0, 2, (3, 16, 4)), torch.tensor([1, 4, 8]), torch.tensor([0, 1, 2])
    assert loaded.config == PRIOR and not loaded.training
    assert torch.equal(loaded(z_t, t, labels), model(z_t, t, labels))


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule("linear", 8),
        NoiseSchedule("cosine", 5),
        NoiseSchedule("sigmoid", 7),
        NoiseSchedule("table", table=[1, 1 / 3, 0.1 + 0.2 - 0.05, 0.01, 0]),
    ],
    ids=lambda schedule: schedule.kind,
)
@pytest.mark.parametrize("target, posterior", [("flip", "exact"), ("z0", "plugin"), ("previous", "exact")])
def test_a_diffusion_comes_back_to_the_last_bit(tmp_path: Path, schedule: NoiseSchedule, target: str, posterior: str):
    save_process(tmp_path, BernoulliDiffusion(schedule, target, posterior))
    loaded = load_process(tmp_path)
    assert torch.equal(loaded.schedule.k, schedule.k)
    assert (loaded.schedule.kind, loaded.target, loaded.posterior) == (schedule.kind, target, posterior)


def test_a_pipeline_index_comes_back(tmp_path: Path):
    index = PipelineIndex(["chat", "chien"], (0, 128, 255), SamplingDefaults(16, 0.8, 3.0))
    save_index(tmp_path, index)
    assert load_index(tmp_path) == index


def edit(path: Path, change: Callable[[dict], None]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.bias"] = torch.zeros(5)
    save_file(tensors, folder / "model.safetensors")


def lose(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, folder / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "config.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "short weights": (lambda f: truncate(f / "model.safetensors"), "model.safetensors is damaged"),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 999),
        "model.safetensors is damaged",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    "short config": (lambda f: truncate(f / "config.json"), "config.json is damaged"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is damaged"),
    "list config": (lambda f: (f / "config.json").write_text("[1]"), r"no known model.* a prior .*Denoiser"),
    "wrong class": (
        lambda f: edit(f / "config.json", lambda c: c.update(_class_name="BinaryAutoencoder")),
        r"BinaryAutoencoder.* a prior .*Denoiser",
    ),
    "unknown field": (
        lambda f: edit(f / "config.json", lambda c: c.update(detph=3)),
        r"config\.json .*'detph'.* bld \d.*'depth'\?",
    ),
    "wrong type": (
        lambda f: edit(f / "config.json", lambda c: c.update(dim="16")),
        r"config\.json: 'dim' is '16'",
    ),
    "wrong shape": (reshape, r"'head\.bias' .*\(4,\).*\(5,\)"),
    "tensor lost": (lose, r"'head\.bias' .*\(4,\).* nothing"),
    "deeper config": (
        lambda f: edit(f / "config.json", lambda c: c.update(depth=3)),
        "'blocks.2.*found nothing",
    ),
    "shallower config": (
        lambda f: edit(f / "config.json", lambda c: c.update(depth=1)),
        "'blocks.1.*no place",
    ),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_model_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None], message: str):
    folder = tmp_path / "prior"
    save_model(folder, prior())
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_prior(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("schedule"),
        lambda c: c.pop("target"),
        lambda c: c.update(steps="8"),
        lambda c: c.update(schedule="table", table=["a"]),
        lambda c: c.update(schedule="table", table=None),
        lambda c: c.update(schedule="table", table=[1, 2, 0]),
        lambda c: c.update(target="flop"),
        lambda c: c.update(_class_name="Denoiser"),
    ],
)
def test_a_damaged_diffusion_is_one_sentence(tmp_path: Path, change: Callable[[dict], None]):
    save_process(tmp_path, BernoulliDiffusion(NoiseSchedule("linear", 8)))
    edit(tmp_path / "config.json", change)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_process(tmp_path)


@pytest.mark.parametrize("steps", [2.5, True, float("nan"), float("inf"), None, [8]])
def test_a_damaged_gaussian_diffusion_is_one_sentence(tmp_path: Path, steps: object):
    pytest.importorskip("diffusers")
    save_process(tmp_path, GaussianDiffusion(8))
    edit(tmp_path / "config.json", lambda c: c.update(steps=steps))
    with pytest.raises(CheckpointError, match=str(tmp_path)) as error:
        load_process(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [None, 1, True, [1], [], {}, {"a": 1}], ids=str)
@pytest.mark.parametrize("load", [load_prior, load_tokenizer, load_process])
def test_a_config_of_no_class_is_one_sentence(tmp_path: Path, load: Callable[[Path], object], kind: object):
    save_model(tmp_path, prior())
    edit(tmp_path / "config.json", lambda c: c.update(_class_name=kind))
    with pytest.raises(CheckpointError, match=rf"{tmp_path} holds .* is expected"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("classes"),
        lambda c: c.update(background=3),
        lambda c: c.update(sampling={"a": 1}),
        *(
            lambda c, name=name, value=value: c.update({name: value})
            for name in ("classes", "background", "sampling", "resample", "text_encoder", "text_encoder_hash", "guide")
            for value in (None, 1, [1], {"a": 1})
        ),
        lambda c: c.update(classes=True),
        lambda c: c.update(background=[0, 0, 0.5]),
        *(
            lambda c, name=name, value=value: c["sampling"].update({name: value})
            for name in ("num_inference_steps", "temperature", "guidance_scale")
            for value in ("1", True, [1])
        ),
    ],
)
def test_a_damaged_index_is_one_sentence(tmp_path: Path, change: Callable[[dict], None]):
    save_index(tmp_path, PipelineIndex([]))
    edit(tmp_path / "model_index.json", change)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/model_index\.json\b.*restore it from a copy") as error:
        load_index(tmp_path)
    assert "\n" not in str(error.value)


def test_an_index_that_is_no_object_is_one_sentence(tmp_path: Path):
    (tmp_path / "model_index.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="restore it from a copy"):
        load_index(tmp_path)


def test_the_tokenizer_s_hash_follows_what_makes_the_codes(tmp_path: Path):
    model = tokenizer()
    first = tokenizer_hash(model)
    save_model(tmp_path, model)
    assert tokenizer_hash(load_tokenizer(tmp_path)) == first
    with torch.no_grad():
        model.decoder.conv_in.weight.add_(1)
    assert tokenizer_hash(model) == first
    with torch.no_grad():
        model.encoder.to_logits.bias[0] += 1e-7
    assert tokenizer_hash(model) != first
    torch.manual_seed(0)
    assert tokenizer_hash(BinaryAutoencoder(AutoencoderConfig(16, 4, 8, (1, 2), 1, embed_dim=8))) != first


def test_hashes_and_configs_from_before_a_setting_was_a_choice_still_hold(tmp_path: Path):
    """The hash was computed by the version without features_dim and out_activation."""
    model = BinaryAutoencoder(AutoencoderConfig(16, 4, 8, (1, 2), 1, embed_dim=8)).eval()
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    assert tokenizer_hash(model) == "4e2a304104fa00c0"
    save_model(tmp_path, model)
    later = ("features_dim", "out_activation", "bit_noise", "patch_size", "resampling", "middle", "bits_per_value")
    edit(tmp_path / "config.json", lambda config: [config.pop(name) for name in later])
    assert tokenizer_hash(load_tokenizer(tmp_path)) == "4e2a304104fa00c0"
    without = AutoencoderConfig(16, 4, 8, (1, 2), 1, embed_dim=8, out_activation=False)
    other = BinaryAutoencoder(without)
    other.load_state_dict(model.state_dict())
    assert tokenizer_hash(other) != tokenizer_hash(model)


# -- training state ---------------------------------------------------------------------------------------


def state(step: int) -> TrainingState:
    return TrainingState(step, {"w": torch.full((3,), float(step))}, {"seconds": step / 3, "note": "é"})


@pytest.fixture
def said() -> list[str]:
    return []


def test_the_last_few_checkpoints_are_kept(tmp_path: Path, said: list[str]):
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.list() == [] and store.latest(said.append) is None
    for step in (5, 100, 20, 3000):
        store.save(state(step))
    assert [path.name for path in store.list()] == ["step-00000100", "step-00003000"]
    newest = store.latest(said.append)
    assert newest.step == 3000 and newest.numbers == state(3000).numbers
    assert torch.equal(newest.tensors["w"], state(3000).tensors["w"])
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000100", "step-00003000"]
    assert said == []
    store.clear()
    assert store.list() == [] and not store.folder.exists()


def test_saving_the_same_step_again_replaces_it(tmp_path: Path, said: list[str]):
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    store.save(TrainingState(1, {"w": torch.zeros(2)}, {}))
    assert torch.equal(store.latest(said.append).tensors["w"], torch.zeros(2)) and len(store.list()) == 1


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_flipped_bit_anywhere_falls_back_to_the_checkpoint_before(tmp_path: Path, file: str):
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    store.save(state(2))
    path = tmp_path / "step-00000002" / file
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 3, 6):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            if file == "state.json" and _same_content(bytes(damaged), whole):
                continue  # the flip made one kind of white space another
            path.write_bytes(damaged)
            said: list[str] = []
            found = store.latest(said.append)
            assert found is not None and found.step == 1, (position, bit)
            assert len(said) == 1 and "damaged" in said[0] and "step-00000002" in said[0]


def _same_content(damaged: bytes, whole: bytes) -> bool:
    try:
        return json.loads(damaged) == json.loads(whole)
    except ValueError:
        return False


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("left", [0, 1, 60])
def test_a_truncated_or_lost_file_falls_back_to_the_checkpoint_before(
    tmp_path: Path, said: list[str], file: str, left: int
):
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    store.save(state(2))
    path = tmp_path / "step-00000002" / file
    path.write_bytes(path.read_bytes()[:left])
    assert store.latest(said.append).step == 1
    path.unlink()
    assert store.latest(said.append).step == 1
    assert len(said) == 2 and all("step-00000002" in text for text in said)
    shutil.rmtree(tmp_path / "step-00000001")
    assert store.latest(said.append) is None


@pytest.mark.parametrize("whole, then", [(1, "step 1 is used"), (0, "begins anew")])
def test_what_happens_in_place_of_damaged_checkpoints_is_said(tmp_path: Path, said: list[str], whole: int, then: str):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2, 3):
        store.save(state(step))
    for folder in store.list()[whole:]:
        (folder / "state.json").write_text("{}")
    found = store.latest(said.append)
    assert (found.step if found else 0) == whole
    assert len(said) == 3 - whole and all(then in text for text in said)


def damage(*folders: Path) -> None:
    for folder in folders:
        (folder / "state.json").write_text("{}")


def names(store: CheckpointStore) -> list[str]:
    return [folder.name for folder in store.list()]


def test_what_a_training_that_began_anew_saves_outlives_the_damaged_checkpoints_beyond_it(tmp_path: Path, said):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1900, 2000):
        store.save(state(step))
    damage(*store.list())
    assert store.latest(said.append) is None
    for step in (100, 200, 300):
        assert store.save(state(step)).is_dir()
        assert CheckpointStore(tmp_path).latest(said.append).step == step
    assert names(store) == ["step-00000200", "step-00000300", "step-00001900", "step-00002000"]
    store.save(state(2100))  # beyond them: nothing in them could be of use any more
    assert names(store) == ["step-00000300", "step-00002100"]


def test_a_damaged_checkpoint_takes_no_whole_one_s_place(tmp_path: Path, said):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        store.save(state(step))
    damage(store.list()[1])
    assert store.latest(said.append).step == 1
    store.save(state(3))
    assert names(store) == ["step-00000001", "step-00000003"]
    damage(store.list()[1])
    assert store.latest(said.append).step == 1
    store.save(state(3))  # written anew, it is whole
    store.save(state(4))
    assert names(store) == ["step-00000003", "step-00000004"]


def test_a_crash_while_saving_leaves_nothing_that_is_taken_for_a_checkpoint(tmp_path: Path, said: list[str]):
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    for step in (2, 9):  # another time it was killed at another step
        left_over = tmp_path / f".step-{step:08d}.part"
        left_over.mkdir()
        (left_over / "state.safetensors").write_bytes(b"half")
    assert store.latest(said.append).step == 1 and said == []
    store.save(state(2))
    assert store.latest(said.append).step == 2 and not list(tmp_path.glob(".*"))


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_file", "touch", "replace"])
def test_a_full_disk_is_one_sentence_and_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], where: str
):
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr(checkpoints, "save_file", full)
            patch.setattr(models, "save_file", full)
        elif where == "touch":
            patch.setattr(Path, "touch", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(CheckpointError, match=rf"space .*{tmp_path}.*intact"):
            store.save(state(2))
        with pytest.raises(CheckpointError, match=rf"space .*{tmp_path / 'model'}"):
            save_model(tmp_path / "model", prior())
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert store.latest(said.append).step == 1 and said == []


def test_another_failure_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints, "save_file", refused)
    with pytest.raises(PermissionError):
        CheckpointStore(tmp_path).save(state(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_to_the_bit_where_it_was(tmp_path: Path, kind: type[torch.optim.Optimizer]):
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        return model, kind(model.parameters(), lr=1e-2)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    straight, optimizer = fresh()
    train(straight, optimizer, range(10))

    model, optimizer = fresh()
    train(model, optimizer, range(6))
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    store = CheckpointStore(tmp_path)
    store.save(TrainingState(6, weights | pack_optimizer("optimizer", optimizer), {}))

    resumed, optimizer = fresh()
    saved = store.latest(pytest.fail).tensors
    resumed.load_state_dict({name[6:]: tensor for name, tensor in saved.items() if name.startswith("model.")})
    unpack_optimizer("optimizer", optimizer, saved)
    train(resumed, optimizer, range(6, 10))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
