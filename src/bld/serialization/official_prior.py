"""The public prior → `Denoiser` and its `BernoulliDiffusion`, every tensor accounted for."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.errors import CheckpointError, SettingError
from bld.priors import Denoiser, DenoiserConfig
from bld.serialization.official_layout import ENDS, PUBLIC_STEPS, Keys, OfficialOptions, State, loaded, shape_of


def prior_from(state: State, options: OfficialOptions) -> tuple[Denoiser, BernoulliDiffusion]:
    """The public denoiser as ours, with the same logits for z_t, t and condition, and how it noises and generates."""
    keys = Keys(state, "prior")
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
    denoiser = loaded(lambda: Denoiser(config), weights, "prior")
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
    bits, dim = shape_of(state, f"{root}tok_emb.weight", 2)
    hidden = shape_of(state, f"{root}blocks.0.mlp.0.weight", 2)[0]
    side = math.isqrt(positions_of(state))
    blocks = {int(match[1]) for name in state if (match := re.match(rf"{root}blocks\.(\d+)\.", name))}
    if dim % heads:
        raise SettingError(f"The public prior is {dim} wide, which {heads} heads cannot share: name them with --heads.")
    conditions: dict[str, Any] = {}
    if f"{root}cls_embedding.weight" in state:
        rows, columns = shape_of(state, f"{root}cls_embedding.weight", 2)
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


def positions_of(state: State) -> int:
    """N, the positions of the prior; `CheckpointError` if they form no square."""
    N = shape_of(state, "_denoise_fn.pos_emb", 3)[1]
    if math.isqrt(N) ** 2 != N:
        raise CheckpointError(f"The public prior has {N} positions, which are no square.")
    return N


def _schedule(keys: Keys, asked: int | None) -> NoiseSchedule:
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
