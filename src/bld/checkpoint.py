"""One way in, one way out: models as `config.json` + `model.safetensors`, training state as checksummed checkpoints.

Nothing here ever unpickles. Files are written aside, synced and renamed, so that a crash or a full disk leaves the
previous one whole.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bld._version import __version__
from bld.autoencoder import AutoencoderConfig, BinaryAutoencoder
from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.errors import CheckpointError, MissingPackageError, did_you_mean
from bld.images import Resample
from bld.priors import (
    NETWORKS,
    AbsorbingDiffusion,
    Autoregression,
    DenoiserConfig,
    GaussianDiffusion,
    Transformer,
)
from bld.process import Process
from bld.processes import spread_like, whole, whole_state

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model_index.json"
Config = TypeVar("Config", AutoencoderConfig, DenoiserConfig)

# -- files ------------------------------------------------------------------------------------------------


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is synced and takes the place of `path`, else it is removed.

    A full disk becomes a `CheckpointError` that says what survived.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(descriptor)
        aside = Path(name)
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.chmod(0o644)  # mkstemp makes files that others cannot read
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        if _disk_is_full(error):
            raise CheckpointError(
                f"No space is left to write {path}; whatever was saved before is intact: "
                "free some space and run the same command again."
            ) from error
        raise
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _disk_is_full(error: Exception) -> bool:
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def write_json(path: Path, value: object) -> None:
    """Write JSON, atomically."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is a `CheckpointError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: is {path.parent} really a saved model or run folder?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged and cannot be read as JSON: restore it from a copy.") from error


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- models -----------------------------------------------------------------------------------------------


def save_model(folder: Path, model: BinaryAutoencoder | Transformer) -> None:
    """Write `config.json` and `model.safetensors` into the folder."""
    with written_aside(folder / WEIGHTS) as aside:
        save_file(whole_state(model), aside)
    write_json(folder / CONFIG, _described(type(model).__name__, dataclasses.asdict(model.config)))


def load_tokenizer(folder: Path) -> BinaryAutoencoder:
    """Read a tokenizer saved by `save_model`, in eval mode on the CPU."""
    config = _config(folder, BinaryAutoencoder.__name__, AutoencoderConfig)
    return _with_weights(folder, lambda: BinaryAutoencoder(config)).eval()


def load_prior(folder: Path) -> Transformer:
    """Read a prior of any kind saved by `save_model`, in eval mode on the CPU."""
    network = _class_in(folder, {network.__name__: network for network in NETWORKS.values()}, "a prior")
    config = _config(folder, network.__name__, DenoiserConfig)
    return _with_weights(folder, lambda: network(config)).eval()


ALTERNATIVES: dict[str, Callable[..., Process]] = {
    process.__name__: process for process in (Autoregression, AbsorbingDiffusion, GaussianDiffusion)
}


def process_settings(process: Process) -> dict[str, Any]:
    """All that a process is made of: of a Bernoulli diffusion its schedule (a table with its numbers) and meaning."""
    if not isinstance(process, BernoulliDiffusion):
        return process.settings()  # type: ignore[attr-defined]
    schedule = process.schedule
    table = {"table": schedule.k.tolist()} if schedule.kind == "table" else {}
    shape = {"schedule": schedule.kind, "steps": schedule.steps, **table}
    return {**shape, "target": process.target, "posterior": process.posterior}


def save_process(folder: Path, process: Process) -> None:
    """Write how a prior noises and generates as `config.json`."""
    write_json(folder / CONFIG, _described(type(process).__name__, process_settings(process)))


def load_process(folder: Path) -> Process:
    """Read what `save_process` wrote."""
    make = _class_in(folder, {"BernoulliDiffusion": BernoulliDiffusion, **ALTERNATIVES}, "a diffusion")
    fields = _fields(folder, make.__name__)
    try:
        if make is not BernoulliDiffusion:
            return make(**fields)
        schedule = NoiseSchedule(fields["schedule"], steps=fields["steps"], table=fields.get("table"))
        return BernoulliDiffusion(schedule, fields["target"], fields["posterior"])
    except MissingPackageError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG} lacks the entry {error}: restore it from a copy.") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not a diffusion ({error}): restore it from a copy.") from error


@dataclass(frozen=True)
class SamplingDefaults:
    """How a pipeline samples when not told otherwise; no steps means all of the diffusion's."""

    num_inference_steps: int | None = None
    temperature: float = 0.9
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class PipelineIndex:
    """What a pipeline knows beside its models: class names in label order, and how images become squares.

    text_encoder: what turns prompts into vectors, a folder or a name on the hub; "" for none.  text_encoder_hash: its
    fingerprint in the training.
    """

    classes: list[str]
    background: tuple[int, int, int] = (255, 255, 255)
    sampling: SamplingDefaults = SamplingDefaults()
    resample: Resample = "lanczos"
    text_encoder: str = ""
    text_encoder_hash: str = ""


def save_index(
    folder: Path, index: PipelineIndex, prior: str = "Denoiser", process: str = "BernoulliDiffusion"
) -> None:
    """Write `model_index.json`, which makes a folder with tokenizer, prior and diffusion a pipeline.

    prior, process: class names of those two, for the reader.
    """
    components = {
        "tokenizer": ["bld", "BinaryAutoencoder"],
        "prior": ["bld", prior],
        "diffusion": ["bld", process],
    }
    fields = {**components, **dataclasses.asdict(index)}
    write_json(folder / INDEX, _described("BinaryLatentDiffusionPipeline", fields))


def load_index(folder: Path) -> PipelineIndex:
    """Read what `save_index` wrote."""
    fields = read_json(folder / INDEX)
    try:
        red, green, blue = fields["background"]
        defaults = SamplingDefaults(**fields["sampling"])
        encoder = str(fields.get("text_encoder", "")), str(fields.get("text_encoder_hash", ""))
        return PipelineIndex(fields["classes"], (red, green, blue), defaults, fields["resample"], *encoder)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX} is not a pipeline's index ({error}).") from error


SETTINGS_OF_LATER = {
    "bottleneck": "bernoulli",
    "features_dim": 0,
    "out_activation": True,
    "bit_noise": 1.0,
    "patch_size": 1,
    "resampling": "convolution",
    "middle": True,
}
"""Choices that tokenizers have not always had: hashes from before still hold."""


def tokenizer_hash(tokenizer: BinaryAutoencoder) -> str:
    """16 hexadecimal digits that change with any weight or setting that changes the codes it makes."""
    fields = dataclasses.asdict(tokenizer.config)
    for name, was_always in SETTINGS_OF_LATER.items():
        if fields[name] == was_always:
            del fields[name]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _described(class_name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"_class_name": class_name, "_bld_version": __version__, **fields}


def _class_in(folder: Path, known: dict[str, Any], what: str) -> Any:
    """The one of the known classes that the folder's config names."""
    fields = read_json(folder / CONFIG)
    found = fields.get("_class_name") if isinstance(fields, dict) else None
    if found not in known:
        raise CheckpointError(
            f"{folder} holds {found or 'no known model'}, where {what} is expected: one of {', '.join(known)}."
        )
    return known[found]


def _fields(folder: Path, class_name: str) -> dict[str, Any]:
    fields = read_json(folder / CONFIG)
    found = fields.get("_class_name") if isinstance(fields, dict) else None
    if found != class_name:
        raise CheckpointError(f"{folder} holds {found or 'no known model'}, where {class_name} is expected.")
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def _config(folder: Path, class_name: str, config_class: type[Config]) -> Config:
    fields = _fields(folder, class_name)
    known = {field.name for field in dataclasses.fields(config_class)}
    for name in fields:
        if name not in known:
            raise CheckpointError(
                f"{folder / CONFIG} has the entry '{name}', unknown to bld {__version__}."
                f"{did_you_mean(name, known)} Was it saved by a newer version?"
            )
    try:
        return config_class(**fields)
    except TypeError as error:
        raise CheckpointError(f"{folder / CONFIG} holds a value of the wrong kind: {error}.") from error


Model = TypeVar("Model", bound=nn.Module)


def _with_weights(folder: Path, build: Callable[[], Model]) -> Model:
    """The model with the folder's weights, built without first initialising its own."""
    with torch.device("meta"):
        model = build()
    tensors = read_tensors(folder / WEIGHTS)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors or tensors[name].shape != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(
                f"{folder / WEIGHTS} does not fit its config: '{name}' should be {tuple(shape)}, found {found}."
            )
    for name in tensors:
        if name not in wanted:
            raise CheckpointError(
                f"{folder / WEIGHTS} does not fit its config: '{name}' has no place in the model {CONFIG} describes."
            )
    model.load_state_dict(tensors, assign=True)
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a missing or damaged one is a `CheckpointError`."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: is {path.parent} really a saved model or run folder?") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it from a copy.") from error


# -- training state ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingState:
    """What a stage needs to go on exactly where it was."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class CheckpointStore:
    """The last few checkpoints of one stage, each a folder `step-00001000` with a checksum."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def save(self, state: TrainingState) -> Path:
        """Write one checkpoint aside, sync it, rename it; then drop all but the last few."""
        target = self.folder / f"step-{state.step:08d}"
        aside = self.folder / f".{target.name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            weights = aside / "state.safetensors"
            with written_aside(weights) as path:
                save_file({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}, path)
            checksum = _checksum(weights, state.step, state.numbers)
            numbers = {"step": state.step, "sha256": checksum, "numbers": state.numbers}
            write_json(aside / "state.json", numbers)
            shutil.rmtree(target, ignore_errors=True)
            aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def list(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def latest(self, say: Callable[[str], None]) -> TrainingState | None:
        """The newest checkpoint that is whole, or None; each damaged one is named through `say`."""
        for folder in reversed(self.list()):
            try:
                return self._load(folder)
            except CheckpointError as error:
                say(f"{error} The one before it is used.")
        return None

    def _load(self, folder: Path) -> TrainingState:
        state = read_json(folder / "state.json")
        weights = folder / "state.safetensors"
        try:
            step, numbers, expected = state["step"], state["numbers"], state["sha256"]
            whole = _checksum(weights, step, numbers) == expected
        except (KeyError, TypeError, OSError):
            whole = False
        if not whole:
            raise CheckpointError(f"The checkpoint {folder.name} in {self.folder} is damaged (its checksum is wrong).")
        return TrainingState(step, read_tensors(weights), numbers)

    def clear(self) -> None:
        """Remove all checkpoints: the stage is finished and its models are saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _checksum(weights: Path, step: int, numbers: dict[str, Any]) -> str:
    """SHA-256 over everything a checkpoint holds."""
    return hashlib.sha256((json.dumps([step, numbers]) + file_sha256(weights)).encode()).hexdigest()


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's per-parameter tensors under flat names, whole; with FSDP every process must ask."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": whole(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took out; the parameter groups keep their present settings."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix + "."):
            index, entry = key[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[entry] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state.items():
        for name, value in entries.items():
            if value.ndim:  # all but the step's number are shaped, and spread, as their parameter is
                entries[name] = spread_like(value, parameters[number])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
