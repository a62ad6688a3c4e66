"""What a run begins with in place of random weights: a tokenizer used as it is, or the weights of another model.

The architecture comes with them into the run's settings; training settings stay those of the preset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bld.data import Preprocessing
from bld.data.decoding import MAX_PIXELS
from bld.diffusion import BernoulliDiffusion
from bld.diffusion.process import Process
from bld.errors import CheckpointError, SettingError
from bld.io.files import read_json
from bld.io.hub import download
from bld.priors import KINDS, DiffusionSettings, Transformer
from bld.priors.base import kind_of
from bld.serialization.models import (
    CONFIG,
    load_index,
    load_prior,
    load_process,
    load_tokenizer,
    save_model,
    tokenizer_hash,
)
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder
from bld.training.run_folder import RunFolder
from bld.training.settings import PriorSettings, Settings

LEAST_KEPT = 0.5  # of a network's parameters: with less, beginning from the other one means nothing


@dataclass(frozen=True)
class Origin:
    """A folder with models of ours: a run, a pipeline, or one model alone.

    Attributes:
        name: what it is recorded as, an absolute path or a name of the hub.
        folder: where the models lie; the local copy of those of the hub.
    """

    name: str
    folder: Path

    @classmethod
    def find(cls, where: str) -> Origin:
        """The folder of that name, else the hub's copy; `CheckpointError` if it holds no finished model."""
        path = Path(where).expanduser()
        origin = cls(str(path.resolve()), path) if path.is_dir() else cls(where, download(where))
        if origin.part("tokenizer") is None and origin.part("prior") is None:
            raise CheckpointError(f"{where} holds no finished tokenizer or prior: name a run, a pipeline or a model.")
        return origin

    def part(self, stage: str) -> Path | None:
        """The folder of the tokenizer or the prior, if there is one."""
        if (self.folder / CONFIG).is_file():
            fields = read_json(self.folder / CONFIG)
            found = fields.get("_class_name") if isinstance(fields, dict) else None
            is_prior = found in {kind.network.__name__ for kind in KINDS.values()}
            held = "prior" if is_prior else "tokenizer" if found == BinaryAutoencoder.__name__ else None
            return self.folder if held == stage else None
        folder = self.folder / stage
        return folder if (folder / CONFIG).is_file() else None

    @property
    def _whole(self) -> Path:
        """The folder that holds all parts."""
        return self.folder.parent if self.part("prior") == self.folder else self.folder

    def tokenizer(self) -> BinaryAutoencoder:
        """The tokenizer; `CheckpointError` where there is none."""
        return load_tokenizer(self._need("tokenizer"))

    def prior(self) -> Transformer:
        """The prior; `CheckpointError` where there is none."""
        return load_prior(self._need("prior"))

    def process(self) -> Process | None:
        """How the prior generates; None where that is not told."""
        folder = self._whole / "diffusion"
        return load_process(folder) if folder.is_dir() else None

    def preprocessing(self) -> Preprocessing:
        """How its images became squares: as its run or its pipeline says, else only the size is known."""
        whole = self._that_tells()
        if whole is not None and whole.has_settings():
            return whole.settings().preprocessing()
        size = self.tokenizer().config.image_size
        if whole is None:
            return Preprocessing(size)
        index = load_index(whole.path)
        return Preprocessing(size, resample=index.resample, background=index.background)

    def max_pixels(self) -> int:
        """Of the largest image that is read: as its run says, else the usual limit."""
        whole = self._that_tells()
        return whole.settings().data.max_pixels if whole is not None and whole.has_settings() else MAX_PIXELS

    def _that_tells(self) -> RunFolder | None:
        """The run or pipeline that tells of its images: the folder itself, or the one that it is a part of."""
        is_part = (self.folder.parent / self.folder.name / CONFIG).is_file()
        folders = [self.folder, *([self.folder.parent] if is_part else [])]
        return next((run for run in map(RunFolder, folders) if run.has_settings() or run.index.is_file()), None)

    def classes(self, count: int) -> list[str]:
        """The names of the prior's classes, numbers where they are not told."""
        told = load_index(self._whole).classes if (self._whole / "model_index.json").is_file() else []
        return told if len(told) == count else [str(i) for i in range(count)]

    def _need(self, stage: str) -> Path:
        folder = self.part(stage)
        if folder is None:
            raise CheckpointError(f"{self.name} holds no {stage}: name a run or a model that has one.")
        return folder


# -- how a run begins -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InitRequest:
    """What a command asks a run to begin with.

    Attributes:
        tokenizer: where its tokenizer comes from, if that is used as it is.
        weights: by stage, where the weights come from that the stage begins with.
    """

    tokenizer: Origin | None = None
    weights: dict[str, Origin] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_options(
        cls, run: RunFolder, stages: Sequence[str], tokenizer: str | None, init_from: str | None
    ) -> InitRequest:
        """What is asked for and not yet done.

        A prior that is trained on begins with its own tokenizer, unless the run has one already.

        Args:
            run: which begins or goes on.
            stages: those that the command trains.
            tokenizer: folder or name on the hub of the tokenizer to use as it is (--tokenizer); None asks for none.
            init_from: folder or name on the hub of the weights to begin with (--init-from); None asks for none.

        Raises:
            SettingError: if the run has begun such a stage already.
            CheckpointError: if the model that is asked for is not there.
        """
        given, weights = None, {}
        if tokenizer is not None and not _is_recorded(run, "tokenizer", "given", tokenizer):
            given = Origin.find(tokenizer)
            given._need("tokenizer")
        if init_from is not None:
            wanted = [stage for stage in stages if stage == "prior" or tokenizer is None]
            missing = [s for s in wanted if not _is_recorded(run, s, "init_from", init_from)]
            origin = Origin.find(init_from) if missing else None
            weights = {stage: origin for stage in missing if origin is not None and origin.part(stage) is not None}
            if origin is not None and not weights:
                origin._need(wanted[0])
            if (
                origin is not None
                and "tokenizer" not in stages
                and tokenizer is None
                and not run.has_begun("tokenizer")
            ):
                given = origin if origin.part("tokenizer") is not None else None
        for stage in [*weights, *(["tokenizer"] if given else [])]:
            if run.has_begun(stage) and not (given and stage == "tokenizer" and _same_tokenizer(run, given)):
                word = "--tokenizer" if given and stage == "tokenizer" else "--init-from"
                raise SettingError(
                    f"{run.path} has begun its {stage} already, and {word} is for a new one: leave {word} out to go on "
                    "with it, or choose another --out."
                )
        return cls(given, weights)

    @property
    def image_size(self) -> int | None:
        """Height and width of the images that the tokenizer takes, in pixels; None if no tokenizer comes along."""
        origin = self.tokenizer or self.weights.get("tokenizer")
        return None if origin is None else origin.tokenizer().config.image_size

    def settings(self) -> dict[str, Any]:
        """The settings that come along: what the networks look like, and how the prior noises.

        With a tokenizer that is used as it is, so does the way that its images became squares (resample, background).
        """
        tree: dict[str, Any] = {}
        tokenizer = self.tokenizer or self.weights.get("tokenizer")
        if tokenizer is not None:
            tree["tokenizer"] = dataclasses.asdict(tokenizer.tokenizer().config)
        if self.tokenizer is not None:  # used as it is, it sees images as it always has
            seen = self.tokenizer.preprocessing()
            tree["data"] = {"resample": seen.resample, "background": list(seen.background)}
        if "prior" in self.weights:
            tree |= _prior_settings(self.weights["prior"])
        return tree

    def check(self, settings: Settings) -> None:
        """Raise `SettingError` if the settings describe another tokenizer than the given one."""
        if self.tokenizer is not None:
            _refuse_other_tokenizer(self.tokenizer, self.tokenizer.tokenizer().config, settings.tokenizer)

    def record(self, run: RunFolder) -> None:
        """Save a given tokenizer in the run and note everything, so that the run goes on without being told again."""
        for stage, origin in self.weights.items():
            run.record(stage, init_from=origin.name)
        if self.tokenizer is not None:
            if not (run.tokenizer / CONFIG).is_file():
                save_model(run.tokenizer, self.tokenizer.tokenizer())
            if "steps" not in run.progress().get("tokenizer", {}):  # else it was trained here, and is the same
                run.record("tokenizer", given=self.tokenizer.name, steps=0, seconds=0.0)


def _is_recorded(run: RunFolder, stage: str, what: str, where: str) -> bool:
    path = Path(where).expanduser()
    name = str(path.resolve()) if path.is_dir() else where
    recorded = run.progress().get(stage, {}).get(what)
    return recorded in (name, str(path.resolve())) and (what != "given" or run.tokenizer.is_dir())


def _same_tokenizer(run: RunFolder, origin: Origin) -> bool:
    """Whether the run has these codes already, or a copy of them that was cut short."""
    if not (run.tokenizer / CONFIG).is_file():
        return not run.checkpoints("tokenizer").list()
    return tokenizer_hash(load_tokenizer(run.tokenizer)) == tokenizer_hash(origin.tokenizer())


def _refuse_other_tokenizer(origin: Origin, given: AutoencoderConfig, asked: AutoencoderConfig) -> None:
    for field in dataclasses.fields(given):
        has, wants = getattr(given, field.name), getattr(asked, field.name)
        if has != wants:
            raise SettingError(
                f"The tokenizer of {origin.name} has tokenizer.{field.name}={has}, and this command says {wants}: "
                f"leave it out, or train another with --init-from {origin.name}."
            )


def _prior_settings(origin: Origin) -> dict[str, Any]:
    """The sections `prior` and `diffusion` as the model has them."""
    network, process = origin.prior(), origin.process()
    config = dataclasses.asdict(network.config)
    kind = kind_of(network) if process is None else KINDS[process.kind]  # kinds may share a network
    known = {field.name for field in dataclasses.fields(PriorSettings)}
    prior = {name: value for name, value in config.items() if name in known}
    if kind.takes_entries:
        prior["categorical"] = config["entries"]
    tree: dict[str, Any] = {"prior": {**prior, "kind": kind.name, "evidence": config["evidence"] != "none"}}
    if process is not None and not kind.has_own_steps:
        known = {field.name for field in dataclasses.fields(DiffusionSettings)}
        tree["diffusion"] = {name: value for name, value in process.settings().items() if name in known}
    elif not kind.has_own_steps:
        tree["diffusion"] = {"steps": network.config.steps}
    return tree


# -- weights ----------------------------------------------------------------------------------------------


def init_tokenizer(model: BinaryAutoencoder, origin: Origin) -> str:
    """Give the tokenizer the weights of another, where they fit.

    Returns:
        What was kept, in a sentence.

    Raises:
        SettingError: if less than half of its weights could be kept.
    """
    return _transfer("tokenizer", model, origin.tokenizer().state_dict(), origin, [])


def init_prior(
    model: Transformer, origin: Origin, classes: Sequence[str], process: Process, tokenizer: BinaryAutoencoder
) -> str:
    """Give the prior the weights of another, where they fit.

    Args:
        model: the prior.
        origin: which has the other prior.
        classes: the names of the model's own classes; those that the other knows keep its tokens.
        process: how the prior noises and generates.
        tokenizer: whose codes the prior is trained on.

    Returns:
        What was kept and what differs, in a sentence.

    Raises:
        SettingError: if less than half of its weights could be kept.
    """
    other = origin.prior()
    state, notes = dict(other.state_dict()), []
    state.pop("evidence_logits", None)  # of the noise schedule, not learned
    if model.classes is not None:
        state["classes.weight"], note = _class_tokens(model, other, origin, classes)
        notes.append(note)
    elif state.pop("classes.weight", None) is not None:
        notes.append("its class tokens are left out, as this prior has no classes")
    if origin.part("tokenizer") is not None and tokenizer_hash(origin.tokenizer()) != tokenizer_hash(tokenizer):
        notes.append("its codes were those of another tokenizer, so what the bits mean is learned anew")
    notes += _other_meaning(process, origin.process())
    if model.config.steps != other.config.steps:
        notes.append(f"it was trained for T = {other.config.steps}, and this prior has {model.config.steps}")
    return _transfer("prior", model, state, origin, notes)


def _transfer(what: str, model: nn.Module, state: dict[str, Tensor], origin: Origin, notes: list[str]) -> str:
    mine = {name: tensor for name, tensor in model.state_dict().items() if name != "evidence_logits"}
    kept = {name for name, tensor in mine.items() if name in state and state[name].shape == tensor.shape}
    share = sum(mine[name].numel() for name in kept) / sum(tensor.numel() for tensor in mine.values())
    if share < LEAST_KEPT:
        raise SettingError(
            f"Only {share:.0%} of the {what} of {origin.name} fits here: leave the settings that shape it ({what}.…) "
            "as they come with --init-from."
        )
    with torch.no_grad():
        for name in kept:
            mine[name].copy_(state[name])  # the tensors of a state dict are the model's own
    anew = sorted(mine.keys() - kept)
    if anew:
        notes = [f"{', '.join(anew)} begin{'s' if len(anew) == 1 else ''} anew, as the shape is another", *notes]
    rest = "".join(f"; {note}" for note in notes)
    return f"The {what} begins with the weights of {origin.name}: {share:.1%} are kept{rest}."


def _class_tokens(model: Transformer, other: Transformer, origin: Origin, classes: Sequence[str]) -> tuple[Tensor, str]:
    """The class tokens: those of classes of the same name, else what stands for no class there; and a note."""
    assert model.classes is not None
    tokens = model.classes.weight.detach().clone()
    if other.classes is None:
        return tokens, "it knew no classes, so the class tokens begin anew"
    theirs, names = other.classes.weight.detach(), origin.classes(other.config.num_classes)
    if theirs.shape[1] != tokens.shape[1]:
        return tokens, f"its class tokens are {theirs.shape[1]} wide, so they begin anew"
    has_null = len(theirs) > len(names)
    general = theirs[len(names)] if has_null else theirs.mean(0)
    tokens[:] = general  # of the learned null token too, where there is one
    shared = [name for name in classes if name in names]
    for row, name in enumerate(classes):
        if name in names:
            tokens[row] = theirs[names.index(name)]
    rest = "" if len(shared) == len(classes) else f", the others begin as {'no class' if has_null else 'their mean'}"
    return tokens, f"{len(shared)} of {len(classes)} classes are known by name and keep their tokens{rest}"


def _other_meaning(process: Process, theirs: Process | None) -> list[str]:
    """What the outputs meant there, where that was something else."""
    if not isinstance(process, BernoulliDiffusion) or not isinstance(theirs, BernoulliDiffusion):
        return []
    here, there = ({"schedule": p.schedule.kind, "target": p.target} for p in (process, theirs))
    return [f"diffusion.{name} was {there[name]} and is {here[name]}" for name in here if here[name] != there[name]]


def init_source(run: RunFolder, stage: str) -> Origin | None:
    """Where the weights of a stage that has no whole checkpoint yet come from; None if they are random."""
    name = run.progress().get(stage, {}).get("init_from")
    goes_on = name is None or run.checkpoints(stage).latest(lambda _: None) is not None
    return None if goes_on else Origin.find(name)


def given_tokenizer(run: RunFolder) -> str | None:
    """Where the run's tokenizer comes from, if it was not trained here."""
    return run.progress().get("tokenizer", {}).get("given")
