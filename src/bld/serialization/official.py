"""The public checkpoints of the paper's authors as models of ours: the same functions, tensor by tensor.

    LOGDIR/saved_models/binaryae_ema_STEP.th   ae.encoder ─▶ ae.quantize ─▶ ae.generator → BinaryAutoencoder
    LOGDIR/saved_models/bld_ema_STEP.th        _denoise_fn (a transformer), scheduler    → Denoiser, BernoulliDiffusion

They carry no config: sizes are read from shapes, the blocks from their names, and what neither can tell is asked for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bld.errors import CheckpointError
from bld.io.files import folder_written_aside
from bld.serialization.models import PipelineIndex, save_index, save_model, save_process
from bld.serialization.official_autoencoder import autoencoder_from, image_size_of
from bld.serialization.official_layout import OfficialOptions, State
from bld.serialization.official_prior import positions_of, prior_from

AUTOENCODER, PRIOR = "binaryae", "bld"

Say = Callable[[str], None]


def convert(
    logdir: Path, out: Path, options: OfficialOptions, say: Say, autoencoder_logdir: Path | None = None
) -> None:
    """Write a folder of ours from a folder of theirs: a pipeline, or a tokenizer alone where there is no prior.

    Where an error is raised, or the conversion is interrupted, nothing has been written.

    Args:
        logdir: their folder, with or without its `saved_models`.
        out: the folder to write; new, or empty.
        options: what the files cannot tell.
        say: called with a sentence on each network that was read.
        autoencoder_logdir: where the autoencoder lies, if not in `logdir`.

    Raises:
        CheckpointError: if `out` holds something already, or for files that are missing, damaged or of another network.
        SettingError: for options that do not fit the files.
    """
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} holds something already: choose another --out.")
    prior_file = _find(logdir, PRIOR, options.step)
    asked = options.autoencoder_step
    step = options.step if asked is None else asked
    autoencoder_file = _find(autoencoder_logdir or logdir, AUTOENCODER, step, asked is None and prior_file is not None)
    if autoencoder_file is None:
        if prior_file is not None:
            raise CheckpointError(
                f"{logdir} holds a prior ({prior_file.name}) and no autoencoder: name its folder with --autoencoder."
            )
        raise CheckpointError(
            f"{autoencoder_logdir or logdir} holds no saved_models/{AUTOENCODER}_ema_STEP.th: name the LOGDIR of a "
            "public checkpoint."
        )
    prior_state = None if prior_file is None else read_state(prior_file)
    autoencoder_state = read_state(autoencoder_file)
    if prior_state is not None:
        _refuse_strangers(prior_state, autoencoder_state, logdir)
    positions = None if prior_state is None else positions_of(prior_state)
    tokenizer = autoencoder_from(autoencoder_state, image_size_of(autoencoder_state, positions, options.image_size))
    size = tokenizer.config.image_size
    say(f"{autoencoder_file.name}: images of {size}×{size} pixels as codes of {tokenizer.code_shape} bits.")
    prior = None
    if prior_state is not None:
        assert prior_file is not None
        prior, diffusion = prior_from(prior_state, options)
        config = prior.config
        what = f"{config.num_classes} classes" if config.num_classes else "no classes"
        what = f"vectors of {config.condition_dim}" if config.condition_dim else what
        say(
            f"{prior_file.name}: a transformer of {config.depth} × {config.dim} with {config.heads} heads, {what}, "
            f"{diffusion.steps} steps ({diffusion.schedule.kind}), {options.posterior} posterior."
        )
    with folder_written_aside(out) as aside:
        save_model(aside / "tokenizer", tokenizer)
        if prior is not None:
            save_model(aside / "prior", prior)
            save_process(aside / "diffusion", diffusion)
            save_index(aside, PipelineIndex(classes=[str(i) for i in range(prior.config.num_classes)]))


def _find(logdir: Path, name: str, step: int | None, or_the_only: bool = False) -> Path | None:
    """The file of a network; None if there is none at all.

    or_the_only: whether one of another step will do where all files are of a single one.
    """
    if not logdir.is_dir():
        raise CheckpointError(f"There is no folder {logdir}.")
    folder = logdir / "saved_models" if (logdir / "saved_models").is_dir() else logdir
    found: dict[tuple[bool, int], Path] = {}  # (whether an average, step)
    for path in sorted(folder.glob(f"{name}_*.th")):
        match = re.fullmatch(rf"{name}_(ema_)?(\d+)\.th", path.name)
        if match is None:
            continue
        key = (match[1] is not None, int(match[2]))
        if key in found:
            raise CheckpointError(
                f"{folder} holds the step {key[1]} twice ({found[key].name}, {path.name}): remove one of them."
            )
        found[key] = path
    if not found:
        return None
    if step is None:
        return found[max(found)]
    for is_average in (True, False):
        if (is_average, step) in found:
            return found[is_average, step]
    steps = sorted({number for _, number in found})
    if len(steps) == 1 and or_the_only:  # a prior's step was named
        return found[max(found)]
    option = "--step or --autoencoder-step" if name == AUTOENCODER else "--step"
    raise CheckpointError(
        f"{folder} has no {name} of step {step}, only {', '.join(map(str, steps))}: name one of them with {option}."
    )


def read_state(path: Path) -> State:
    """The tensors of a `torch.save`d state dict; nothing but tensors is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise CheckpointError(
            f"{path} cannot be read as the weights of a public checkpoint ({type(error).__name__}): "
            "is it whole, and of the public code?"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path} holds something else than named tensors: it is no public checkpoint.")
    return dict(state)


def _refuse_strangers(prior: State, autoencoder: State, logdir: Path) -> None:
    """Refuse a prior of another autoencoder: it keeps a copy of its own one's embedding, which is compared."""
    own, theirs = prior.get("embedding_weight"), autoencoder.get("ae.quantize.embed.weight")
    if own is None or theirs is None:
        return
    if own.shape != theirs.shape or not torch.allclose(own.float(), theirs.float(), atol=1e-3):
        raise CheckpointError(
            f"The prior in {logdir} was trained on the codes of another autoencoder: name the folder of its own with "
            "--autoencoder, or another step with --autoencoder-step."
        )


def options_from(**values: Any) -> OfficialOptions:
    """Options from the values given; one that is None was not given, and keeps its default."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(OfficialOptions(), **given)
