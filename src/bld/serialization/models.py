"""Saving and loading of models as `config.json` and `model.safetensors`. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import save_file
from torch import nn

from bld._version import __version__
from bld.data import Resample
from bld.diffusion.process import Process
from bld.errors import CheckpointError, MissingPackageError, did_you_mean
from bld.io.files import read_json, read_tensors, write_json, written_aside
from bld.priors import KINDS, DenoiserConfig, Transformer
from bld.runtime.distributed import whole_state
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model_index.json"
GUIDE = "guide"  # the folder of a prior that guides another; not all pipelines have one
Config = TypeVar("Config", AutoencoderConfig, DenoiserConfig)


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
    network, config = _prior_network(folder), load_prior_config(folder)
    return _with_weights(folder, lambda: network(config)).eval()


def load_prior_config(folder: Path) -> DenoiserConfig:
    """The config of a prior of any kind saved by `save_model`."""
    return _config(folder, _prior_network(folder).__name__, DenoiserConfig)


def _prior_network(folder: Path) -> type[Transformer]:
    known = {kind.network.__name__: kind.network for kind in KINDS.values()}
    network: type[Transformer] = _class_in(folder, known, "a prior")
    return network


def save_process(folder: Path, process: Process) -> None:
    """Write how a prior noises and generates as `config.json`."""
    write_json(folder / CONFIG, _described(type(process).__name__, process.settings()))


def load_process(folder: Path) -> Process:
    """Read what `save_process` wrote."""
    make = _class_in(folder, {kind.process.__name__: kind.process for kind in KINDS.values()}, "a diffusion")
    try:
        return make.from_settings(**_fields(folder, make.__name__))
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

    def guidance(self, asked: float | None) -> float:
        """The guidance scale that was asked for, or else this one."""
        return self.guidance_scale if asked is None else asked


@dataclass(frozen=True)
class PipelineIndex:
    """What a pipeline knows beside its models: class names, how images become squares, and how it samples.

    Attributes:
        classes: class names in label order.
        background: red, green, blue (0-255) behind transparent pixels.
        sampling: how it samples when not told otherwise.
        resample: filter used when resizing images.
        text_encoder: what turns prompts into vectors, a folder or a name on the hub; "" for none.
        text_encoder_hash: its fingerprint in the training; "" for none.
        guide: whether a weaker prior lies beside the prior, to guide it.
    """

    classes: list[str]
    background: tuple[int, int, int] = (255, 255, 255)
    sampling: SamplingDefaults = SamplingDefaults()
    resample: Resample = "lanczos"
    text_encoder: str = ""
    text_encoder_hash: str = ""
    guide: bool = False


def save_index(
    folder: Path, index: PipelineIndex, prior: str = "Denoiser", process: str = "BernoulliDiffusion"
) -> None:
    """Write `model_index.json`, which makes a folder with tokenizer, prior and diffusion a pipeline.

    Args:
        folder: of the pipeline.
        index: what is written.
        prior: class name of the prior, for readers of the file.
        process: class name of the diffusion, for readers of the file.
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
    path = folder / INDEX
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} is not a pipeline's index: restore it from a copy.")
    own = {name: fields[name] for name in get_type_hints(PipelineIndex) if name in fields}
    try:
        own["sampling"] = SamplingDefaults(**fields["sampling"])
        _refuse_other_kinds(path, fields["sampling"], SamplingDefaults)
        _refuse_other_kinds(path, own, PipelineIndex)
        red, green, blue = fields["background"]
        return PipelineIndex(**{**own, "background": (red, green, blue), "resample": fields["resample"]})
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the entry {error}: restore it from a copy.") from error
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a pipeline's index ({error}): restore it from a copy.") from error


SETTINGS_OF_LATER = {
    "bottleneck": "bernoulli",
    "features_dim": 0,
    "out_activation": True,
    "bit_noise": 1.0,
    "patch_size": 1,
    "resampling": "convolution",
    "middle": True,
    "bits_per_value": 1,
}
"""Settings that tokenizers have not always had, with the values that hold for older ones.

At these values they are left out of the hash, so that hashes from before still hold.
"""


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
    if not isinstance(found, str) or found not in known:
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
    _refuse_other_kinds(folder / CONFIG, fields, config_class)
    return config_class(**fields)


def _refuse_other_kinds(path: Path, fields: dict[str, Any], config_class: type[Any]) -> None:
    """Refuse values that the class, a dataclass, does not take."""
    for name, hint in get_type_hints(config_class).items():
        if name in fields and not _is(fields[name], hint):
            raise CheckpointError(
                f"{path}: '{name}' is {fields[name]!r}, which is a value of the wrong kind: restore it from a copy."
            )


def _is(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a config's kind."""
    if get_origin(hint) is UnionType:
        return any(_is(value, one) for one in get_args(hint))
    if get_origin(hint) in (tuple, list):
        return isinstance(value, list | tuple) and all(_is(entry, get_args(hint)[0]) for entry in value)
    if get_origin(hint) is Literal:  # which one it is, the config checks
        hint = type(get_args(hint)[0])
    return isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) <= (hint is bool)


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
