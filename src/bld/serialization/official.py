"""The public checkpoints of the paper's authors as models of ours: the same functions, tensor by tensor.

    LOGDIR/saved_models/binaryae_ema_STEP.th   ae.encoder ─▶ ae.quantize ─▶ ae.generator → BinaryAutoencoder
    LOGDIR/saved_models/bld_ema_STEP.th        _denoise_fn (a transformer), scheduler    → Denoiser, BernoulliDiffusion

They carry no config: sizes are read from shapes, the blocks from their names, and what neither can tell is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.errors import CheckpointError, SettingError
from bld.priors import Denoiser, DenoiserConfig
from bld.serialization.models import PipelineIndex, save_index, save_model, save_process
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

PUBLIC_IMAGE_SIZE = 256
PUBLIC_HEADS = 12
PUBLIC_STEPS = 64
AUTOENCODER, PRIOR = "binaryae", "bld"

Say = Callable[[str], None]
State = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class OfficialOptions:
    """What the files cannot tell.

    Args:
        step: of the files to take; None is the newest average, or the newest file where there is no average
        autoencoder_step: the same for the autoencoder, where it has other steps than the prior
        image_size: pixels; None follows from the prior's positions, and is 256 for an autoencoder alone
        heads: attention heads of the prior
        steps: T; None is read from the noise schedule among the weights, and is 64 where there is none
        posterior: how the prior samples: plugin as the public code does (eq. 10), or exact (eq. 8)
        target: what the prior predicts: flip (--p_flip, as in all published commands) or z0
    """

    step: int | None = None
    autoencoder_step: int | None = None
    image_size: int | None = None
    heads: int = PUBLIC_HEADS
    steps: int | None = None
    posterior: Literal["plugin", "exact"] = "plugin"
    target: Literal["flip", "z0"] = "flip"

    def __post_init__(self) -> None:
        for name in ("image_size", "heads", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} of a public checkpoint is at least 1, not {value}.")


def convert(
    logdir: Path, out: Path, options: OfficialOptions, say: Say, autoencoder_logdir: Path | None = None
) -> None:
    """Write a folder of ours from a folder of theirs: a pipeline, or a tokenizer alone where there is no prior.

    autoencoder_logdir: where the autoencoder lies, if not in logdir.
    Raises `CheckpointError` for files that are missing, damaged or of another network; then nothing is written.
    """
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} holds something already: choose another --out.")
    prior_file = _find(logdir, PRIOR, options.step)
    autoencoder_file = _find(autoencoder_logdir or logdir, AUTOENCODER, options.autoencoder_step or options.step)
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
    positions = None if prior_state is None else _positions(prior_state)
    tokenizer = autoencoder_from(autoencoder_state, _image_size(autoencoder_state, positions, options.image_size))
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
    save_model(out / "tokenizer", tokenizer)
    if prior is not None:
        save_model(out / "prior", prior)
        save_process(out / "diffusion", diffusion)
        save_index(out, PipelineIndex(classes=[str(i) for i in range(prior.config.num_classes)]))


# -- files ------------------------------------------------------------------------------------------------


def _find(logdir: Path, name: str, step: int | None) -> Path | None:
    """The file of a network; None if there is none at all."""
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
    if len(steps) == 1 and name == AUTOENCODER:  # a prior's step was named, and of this there is one only
        return found[max(found)]
    option = "--step or --autoencoder-step" if name == AUTOENCODER else "--step"
    raise CheckpointError(
        f"{folder} has no {name} of step {step}, only {', '.join(map(str, steps))}: name one of them with {option}."
    )


def read_state(path: Path) -> State:
    """The tensors of a `torch.save`d state dict; nothing but tensors is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as the weights of a public checkpoint ({type(error).__name__}): "
            "is it whole, and of the public code?"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path} holds something else than named tensors: it is no public checkpoint.")
    return dict(state)


def _shape(state: State, name: str, ndim: int) -> tuple[int, ...]:
    if name not in state or state[name].ndim != ndim:
        raise CheckpointError(f"The public checkpoint lacks '{name}': is the file whole, and of the public code?")
    return tuple(state[name].shape)


class _Keys:
    """A state dict that is taken apart: what is asked for must be there, and what is left over is named."""

    def __init__(self, state: State, what: str):
        self.left, self.what = dict(state), what

    def take(self, name: str) -> Tensor:
        """A tensor in float32, contiguous."""
        if name not in self.left:
            raise CheckpointError(f"The public {self.what} lacks '{name}': is the file whole, and of the public code?")
        return self.left.pop(name).float().contiguous()

    def drop(self, *prefixes: str) -> None:
        """Leave out what is not needed."""
        self.left = {name: tensor for name, tensor in self.left.items() if not name.startswith(prefixes)}

    def refuse_rest(self) -> None:
        """Everything must have had a place."""
        for name in self.left:
            raise CheckpointError(
                f"The public {self.what} has the unknown entry '{name}': it belongs to a network of another design."
            )


def _loaded(build: Callable[[], Network], state: State, what: str) -> Network:
    """The network with exactly these weights, in eval mode."""
    with torch.device("meta"):
        network = build()
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for name, shape in wanted.items():
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != tuple(shape):
            raise CheckpointError(
                f"The public {what} does not fit together: what becomes '{name}' should be {tuple(shape)}, "
                f"and {found} was found."
            )
    network.load_state_dict(state, assign=True)
    return network.eval()


# -- autoencoder ------------------------------------------------------------------------------------------

# The kinds of blocks by letter: (C)onvolution, (N)orm, (R)esidual, (A)ttention, re(S)ampling.
ENCODER = re.compile(r"C(?P<levels>[RAS]*)RARNC")
DECODER = re.compile(r"(?P<norm_first>N?)CRAR(?P<levels>[RAS]*)NC")


class _Half(NamedTuple):
    """An encoder or decoder as its blocks say."""

    prefix: str
    letters: str
    levels: list[str]  # the letters of each resolution, without resampling
    res_blocks: int
    norm_first: bool

    @property
    def attends(self) -> list[bool]:
        return ["A" in level for level in self.levels]


def autoencoder_from(state: State, image_size: int) -> BinaryAutoencoder:
    """The public autoencoder as ours: the same probabilities, and the same images from the same bits.

    Their decoder reads `bits @ embed`; ours a 1×1 convolution of bits as -1 and 1: ½·embed, and a bias ½·Σ embed.
    """
    keys = _Keys(state, "autoencoder")
    keys.drop("disc.", "perceptual.", "ae.generator.logsigma.")
    encoder, decoder = (_half(state, f"ae.{name}.", form) for name, form in HALVES.items())
    config = _autoencoder_config(state, encoder, decoder, image_size)
    logits, embed = "ae.quantize.proj.0", keys.take("ae.quantize.embed.weight")  # (c, embed_dim)
    weights = {
        "encoder.to_logits.weight": keys.take(f"{logits}.weight"),
        "encoder.to_logits.bias": keys.take(f"{logits}.bias"),
        "decoder.embed.weight": (0.5 * embed.T[..., None, None]).contiguous(),
        "decoder.embed.bias": 0.5 * embed.sum(0),
    }
    places = [*_encoder_places(encoder), *_decoder_places(decoder)]
    theirs = [(half, i, letter) for half in (encoder, decoder) for i, letter in enumerate(half.letters)]
    for (half, i, letter), ours in zip(theirs, places, strict=True):
        weights |= _block(keys, f"{half.prefix}blocks.{i}.", letter, ours)
    keys.refuse_rest()
    return _loaded(lambda: BinaryAutoencoder(config), weights, "autoencoder")


HALVES = {"encoder": ENCODER, "generator": DECODER}


def _half(state: State, prefix: str, form: re.Pattern[str]) -> _Half:
    """Read the order of the blocks off their names and shapes."""
    blocks: dict[int, set[str]] = {}
    for name in state:
        match = re.fullmatch(re.escape(prefix) + r"blocks\.(\d+)\.(.+)", name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(match[2])
    letters = "".join(_letter(state, f"{prefix}blocks.{i}.", blocks.get(i, set())) for i in range(len(blocks)))
    match = form.fullmatch(letters)
    levels = match["levels"].split("S") if match else []
    counts = {level.count("R") for level in levels}
    even = all(level in ("R" * level.count("R"), "RA" * level.count("R")) for level in levels)
    if match is None or not even or len(counts) != 1 or counts == {0}:
        raise CheckpointError(
            f"The blocks of {prefix}blocks are in no order that the public code makes ({letters or 'none'}): "
            "is this a public autoencoder?"
        )
    return _Half(prefix, letters, levels, counts.pop(), bool(match.groupdict().get("norm_first")))


def _letter(state: State, block: str, names: set[str]) -> str:
    if "norm1.weight" in names:
        return "R"
    if "q.weight" in names:
        return "A"
    if "conv.weight" in names:
        return "S"
    if "weight" in names:
        return "C" if state[f"{block}weight"].ndim == 4 else "N"
    return "?"


def _autoencoder_config(state: State, encoder: _Half, decoder: _Half, image_size: int) -> AutoencoderConfig:
    first = state["ae.encoder.blocks.0.weight"]
    last = state[f"ae.encoder.blocks.{len(encoder.letters) - 1}.weight"]
    code_bits, embed_dim = _shape(state, "ae.quantize.embed.weight", 2)
    base = first.shape[0]
    residuals = [i for i, letter in enumerate(encoder.letters) if letter == "R"]
    widths = [
        _shape(state, f"ae.encoder.blocks.{residuals[(level + 1) * encoder.res_blocks - 1]}.conv2.weight", 4)[0]
        for level in range(len(encoder.levels))
    ]
    if base == 0 or any(width % base for width in widths):
        raise CheckpointError(f"The widths {widths} of the public autoencoder are no multiples of its first, {base}.")
    if encoder.attends != decoder.attends[::-1]:
        raise CheckpointError("Encoder and decoder of the public autoencoder have attention at different resolutions.")
    return AutoencoderConfig(
        image_size=image_size,
        code_bits=code_bits,
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        res_blocks=encoder.res_blocks,
        decoder_res_blocks=0 if decoder.res_blocks == encoder.res_blocks else decoder.res_blocks,
        attention_resolutions=tuple(image_size // 2**level for level, attends in enumerate(encoder.attends) if attends),
        embed_dim=embed_dim,
        norm_first=decoder.norm_first,
        in_channels=first.shape[1],
        features_dim=0 if last.shape[0] == widths[-1] else last.shape[0],
        out_activation=False,
    )


def _encoder_places(half: _Half) -> Iterator[str]:
    """The names of our blocks in their order."""
    yield "encoder.conv_in."
    yield from _stage_places(half, "encoder.stages", "encoder.downs")
    yield from (f"encoder.middle.{i}." for i in range(3))
    yield from ("encoder.out.norm.", "encoder.out.conv.")


def _decoder_places(half: _Half) -> Iterator[str]:
    if half.norm_first:
        yield "decoder.norm_in."
    yield "decoder.conv_in."
    yield from (f"decoder.middle.{i}." for i in range(3))
    yield from _stage_places(half, "decoder.stages", "decoder.ups")
    yield from ("decoder.out.norm.", "decoder.out.conv.")


def _stage_places(half: _Half, stages: str, between: str) -> Iterator[str]:
    for level, letters in enumerate(half.levels):
        yield from (f"{stages}.{level}.{i}." for i in range(len(letters)))
        if level < len(half.levels) - 1:
            yield f"{between}.{level}."


def _block(keys: _Keys, theirs: str, letter: str, ours: str) -> State:
    """One block's tensors under our names."""

    def moved(pairs: dict[str, str]) -> State:
        return {f"{ours}{new}{end}": keys.take(f"{theirs}{old}{end}") for old, new in pairs.items() for end in ENDS}

    if letter in "CN":
        return {f"{ours}{end[1:]}": keys.take(f"{theirs}{end[1:]}") for end in ENDS}
    if letter == "S":
        return moved({"conv": "conv"})
    if letter == "A":
        qkv = {f"{ours}qkv{end}": torch.cat([keys.take(f"{theirs}{part}{end}") for part in "qkv"]) for end in ENDS}
        return {**qkv, **moved({"norm": "norm", "proj_out": "out"})}
    block = moved({name: name for name in ("norm1", "conv1", "norm2", "conv2")})
    skip = moved({"conv_out": "skip"})  # always there, and used only where widths differ
    changes_width = block[f"{ours}conv1.weight"].shape[0] != block[f"{ours}conv1.weight"].shape[1]
    return {**block, **skip} if changes_width else block


ENDS = (".weight", ".bias")


def _image_size(state: State, positions: int | None, asked: int | None) -> int:
    """Pixels: as asked for, or as the prior's positions say."""
    factor = 2 ** _half(state, "ae.encoder.", ENCODER).letters.count("S")
    follows = None if positions is None else math.isqrt(positions) * factor
    if asked is not None and follows not in (None, asked):
        raise SettingError(
            f"The prior has {positions} positions, which are images of {follows} pixels with this autoencoder, "
            f"not {asked}: leave --image-size out."
        )
    return asked or follows or PUBLIC_IMAGE_SIZE


# -- prior ------------------------------------------------------------------------------------------------


def prior_from(state: State, options: OfficialOptions) -> tuple[Denoiser, BernoulliDiffusion]:
    """The public denoiser as ours, and how it noises and generates: the same logits for z_t, t and condition."""
    keys = _Keys(state, "prior")
    keys.drop("embedding_weight")
    schedule = _schedule(keys, options.steps)
    config = _prior_config(state, schedule.steps, options.heads)
    root = "_denoise_fn."
    tokens = keys.take(f"{root}tok_emb.weight")  # (c, D)
    weights = {
        "embed.weight": tokens.T.contiguous(),
        "embed.bias": torch.zeros(config.dim),
        "positions": keys.take(f"{root}pos_emb")[0],
    }
    names = {
        "ln_f": "norm",
        "head": "head",
        "time_step_embedding.l0": "step.expand",
        "time_step_embedding.linear": "step.out",
    }
    if config.condition_dim:
        names["cls_embedding"] = "vectors.project"
        weights |= {"vectors.mean": torch.zeros(config.condition_dim), "vectors.scale": torch.ones(())}
    elif config.num_classes:
        weights["classes.weight"] = keys.take(f"{root}cls_embedding.weight")
    for i in range(config.depth):
        names |= {f"blocks.{i}.{old}": f"blocks.{i}.{new}" for old, new in BLOCK_NAMES.items()}
        for number in (1, 2):
            weights[f"blocks.{i}.scale{number}"] = keys.take(f"{root}blocks.{i}.gamma_{number}")
    weights |= {f"{new}{end}": keys.take(f"{root}{old}{end}") for old, new in names.items() for end in ENDS}
    keys.refuse_rest()
    denoiser = _loaded(lambda: Denoiser(config), weights, "prior")
    return denoiser, BernoulliDiffusion(schedule, options.target, options.posterior)


BLOCK_NAMES = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.0": "expand",
    "mlp.2": "contract",
}


def _prior_config(state: State, steps: int, heads: int) -> DenoiserConfig:
    root = "_denoise_fn."
    bits, dim = _shape(state, f"{root}tok_emb.weight", 2)
    hidden = _shape(state, f"{root}blocks.0.mlp.0.weight", 2)[0]
    side = math.isqrt(_positions(state))
    blocks = {int(match[1]) for name in state if (match := re.match(rf"{root}blocks\.(\d+)\.", name))}
    if dim % heads:
        raise SettingError(f"The public prior is {dim} wide, which {heads} heads cannot share: name them with --heads.")
    conditions: dict[str, Any] = {}
    if f"{root}cls_embedding.weight" in state:
        rows, columns = _shape(state, f"{root}cls_embedding.weight", 2)
        is_linear = f"{root}cls_embedding.bias" in state
        conditions = {"condition_dim": columns} if is_linear else {"num_classes": rows}
    return DenoiserConfig(
        side,
        side,
        bits,
        steps=steps,
        dim=dim,
        depth=len(blocks),
        heads=heads,
        mlp_ratio=hidden / dim,
        step_embedding="sinusoidal",
        layer_scale=1.0,
        evidence="none",
        null_condition="absent",
        **conditions,
    )


def _positions(state: State) -> int:
    """N, a square."""
    N = _shape(state, "_denoise_fn.pos_emb", 3)[1]
    if math.isqrt(N) ** 2 != N:
        raise CheckpointError(f"The public prior has {N} positions, which are no square.")
    return N


def _schedule(keys: _Keys, asked: int | None) -> NoiseSchedule:
    """The schedule whose retentions lie among the weights; where they do not, the public one of so many steps."""
    buffers = {name: keys.left.pop(name) for name in [*keys.left] if name in SCHEDULE_BUFFERS}
    k = buffers.get("scheduler.k_final")
    if k is None:
        return NoiseSchedule("linear", asked or PUBLIC_STEPS)
    steps = len(k) - 1
    if asked is not None and asked != steps:
        raise SettingError(f"The public prior was trained with T = {steps}, not {asked}: leave --diffusion-steps out.")
    for kind in ("linear", "cosine", "sigmoid"):
        schedule = NoiseSchedule(kind, steps)
        if torch.allclose(schedule.k, k.double(), atol=1e-6):
            return schedule
    return NoiseSchedule("table", table=k.double().clamp(0, 1).tolist())


SCHEDULE_BUFFERS = {f"scheduler.{name}" for name in ("k_final", "b_final", "beta", "cumbeta")}


def _refuse_strangers(prior: State, autoencoder: State, logdir: Path) -> None:
    """A prior keeps a copy of its autoencoder's embedding, by which the two know each other."""
    own, theirs = prior.get("embedding_weight"), autoencoder.get("ae.quantize.embed.weight")
    if own is None or theirs is None:
        return
    if own.shape != theirs.shape or not torch.allclose(own.float(), theirs.float(), atol=1e-3):
        raise CheckpointError(
            f"The prior in {logdir} was trained on the codes of another autoencoder: name the folder of its own with "
            "--autoencoder, or another step with --autoencoder-step."
        )


def options_from(**values: Any) -> OfficialOptions:
    """Options from values of which those that are None were not given."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(OfficialOptions(), **given)
