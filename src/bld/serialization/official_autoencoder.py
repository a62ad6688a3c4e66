"""The public autoencoder → `BinaryAutoencoder`, every tensor accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch

from bld.errors import CheckpointError, SettingError
from bld.serialization.official_layout import ENDS, PUBLIC_IMAGE_SIZE, Keys, State, loaded, shape_of
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

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

    Their decoder reads `bits @ embed`. Ours reads a 1×1 convolution of bits as -1 and 1, with the weights ½·embed and
    the bias ½·Σ embed.
    """
    keys = Keys(state, "autoencoder")
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
    return loaded(lambda: BinaryAutoencoder(config), weights, "autoencoder")


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
    code_bits, embed_dim = shape_of(state, "ae.quantize.embed.weight", 2)
    base = first.shape[0]
    residuals = [i for i, letter in enumerate(encoder.letters) if letter == "R"]
    widths = [
        shape_of(state, f"ae.encoder.blocks.{residuals[(level + 1) * encoder.res_blocks - 1]}.conv2.weight", 4)[0]
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


def _block(keys: Keys, theirs: str, letter: str, ours: str) -> State:
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


def image_size_of(state: State, positions: int | None, asked: int | None) -> int:
    """Height and width of the images, in pixels.

    Args:
        state: the autoencoder's tensors, which say by what factor it reduces images.
        positions: N of the prior; None where there is no prior.
        asked: the size that is asked for, if any.

    Returns:
        The size asked for, else the one that follows from the prior's positions, else that of the public code (256).

    Raises:
        SettingError: if the size asked for is not the one that follows.
    """
    factor = 2 ** _half(state, "ae.encoder.", ENCODER).letters.count("S")
    follows = None if positions is None else math.isqrt(positions) * factor
    if asked is not None and follows not in (None, asked):
        raise SettingError(
            f"The prior has {positions} positions, which are images of {follows} pixels with this autoencoder, "
            f"not {asked}: leave --image-size out."
        )
    return asked or follows or PUBLIC_IMAGE_SIZE
