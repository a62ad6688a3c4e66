"""The networks and the sampling loop of the paper's public code, written again as plain functions of a state dict.

Independent of `bld.serialization.official` and of our modules: only torch's functions, walking the layout that is
described to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """The settings that a public checkpoint does not carry."""

    nf: int = 32
    ch_mult: tuple[int, ...] = (1, 2)
    res_blocks: int = 1
    gen_mul: float = 1.0
    size: int = 16
    attn: tuple[int, ...] = (8,)
    norm_first: bool = False
    emb: int = 32
    bits: int = 6
    steps: int = 8
    dim: int = 32
    depth: int = 2
    heads: int = 4
    classes: int = 0
    text: int = 0


class Blocks:
    """Makes the flat list of blocks, or, with weights, walks it."""

    def __init__(self, state: State, prefix: str, make: bool):
        self.state, self.prefix, self.make, self.number = state, prefix, make, 0

    def parameter(self, name: str, *shape: int) -> Tensor:
        key = f"{self.prefix}blocks.{self.number}.{name}"
        if self.make:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
            self.state[key] = torch.randn(shape) * fan_in**-0.5 + (name.endswith("weight") and len(shape) == 1)
        return self.state[key]

    def conv(self, x: Tensor, out: int, kernel: int = 3, name: str = "", **options) -> Tensor:
        name = f"{name}." if name else ""
        weight = self.parameter(f"{name}weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.parameter(f"{name}bias", out), **options)

    def norm(self, x: Tensor, name: str = "") -> Tensor:
        name = f"{name}." if name else ""
        weight = self.parameter(f"{name}weight", x.shape[1])
        return F.group_norm(x, 32, weight, self.parameter(f"{name}bias", x.shape[1]), eps=1e-6)

    def residual(self, x: Tensor, out: int) -> Tensor:
        y = self.conv(F.silu(self.norm(x, "norm1")), out, name="conv1", padding=1)
        y = self.conv(F.silu(self.norm(y, "norm2")), out, name="conv2", padding=1)
        skip = self.conv(x, out, 1, name="conv_out")
        self.number += 1
        return y + (skip if x.shape[1] != out else x)

    def attention(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        y = self.norm(x, "norm")
        q, k, v = (self.conv(y, C, 1, name=name).reshape(B, C, H * W) for name in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(C)).softmax(-1)
        y = torch.einsum("bij,bcj->bci", weights, v).reshape(B, C, H, W)
        y = x + self.conv(y, C, 1, name="proj_out")
        self.number += 1
        return y

    def plain(self, x: Tensor, out: int) -> Tensor:
        y = self.conv(x, out, padding=1)
        self.number += 1
        return y

    def plain_norm(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        self.number += 1
        return y

    def down(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (0, 1, 0, 1)), x.shape[1], name="conv", stride=2)
        self.number += 1
        return y

    def up(self, x: Tensor) -> Tensor:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = self.conv(x, x.shape[1], name="conv", padding=1)
        self.number += 1
        return y


def encode(state: State, layout: Layout, images: Tensor, make: bool = False) -> Tensor:
    """Images (B, 3, S, S) → P(bit = 1), (B, c, h, w)."""
    blocks, size = Blocks(state, "ae.encoder.", make), layout.size
    x = blocks.plain(images, layout.nf)
    for level, mult in enumerate(layout.ch_mult):
        for _ in range(layout.res_blocks):
            x = blocks.residual(x, layout.nf * mult)
            x = blocks.attention(x) if size in layout.attn else x
        if level < len(layout.ch_mult) - 1:
            x, size = blocks.down(x), size // 2
    x = blocks.residual(blocks.attention(blocks.residual(x, x.shape[1])), x.shape[1])
    x = blocks.plain(blocks.plain_norm(x), layout.emb)
    if make:
        state["ae.quantize.proj.0.weight"] = torch.randn(layout.bits, layout.emb, 1, 1) * layout.emb**-0.5
        state["ae.quantize.proj.0.bias"] = 0.2 * torch.randn(layout.bits)
        state["ae.quantize.embed.weight"] = torch.randn(layout.bits, layout.emb)
    return F.conv2d(x, state["ae.quantize.proj.0.weight"], state["ae.quantize.proj.0.bias"]).sigmoid()


def decode(state: State, layout: Layout, bits: Tensor, make: bool = False) -> Tensor:
    """Bits (B, c, h, w) → images (B, 3, S, S)."""
    x = torch.einsum("bchw,ce->behw", bits, state["ae.quantize.embed.weight"])
    blocks, size = Blocks(state, "ae.generator.", make), layout.size // 2 ** (len(layout.ch_mult) - 1)
    x = blocks.plain_norm(x) if layout.norm_first else x
    x = blocks.plain(x, layout.nf * layout.ch_mult[-1])
    x = blocks.residual(blocks.attention(blocks.residual(x, x.shape[1])), x.shape[1])
    for level in reversed(range(len(layout.ch_mult))):
        for _ in range(int(layout.res_blocks * layout.gen_mul)):
            x = blocks.residual(x, layout.nf * layout.ch_mult[level])
            x = blocks.attention(x) if size in layout.attn else x
        if level:
            x, size = blocks.up(x), size * 2
    return blocks.plain(blocks.plain_norm(x), 3)


def denoise(state: State, layout: Layout, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    """Bits z_t (B, N, c), steps t (B,) in 1 … T, labels or vectors → logits (B, N, c)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"_denoise_fn.{name}.weight"], state.get(f"_denoise_fn.{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = (state[f"_denoise_fn.{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    half, N = layout.dim // 2, z_t.shape[1]
    angles = (t - 1)[:, None] / layout.steps * 4000 * torch.exp(-torch.arange(half) * math.log(10000) / (half - 1))
    step = torch.cat([angles.sin(), angles.cos()], -1)
    step = linear(F.silu(linear(step, "time_step_embedding.l0")), "time_step_embedding.linear")
    x = (z_t - 0.5) * 2 @ state["_denoise_fn.tok_emb.weight"] + state["_denoise_fn.pos_emb"]
    tokens = [x, step.unsqueeze(1)]
    if condition is not None:
        table = state["_denoise_fn.cls_embedding.weight"]
        tokens.append((linear(condition, "cls_embedding") if layout.text else table[condition]).unsqueeze(1))
    x = torch.cat(tokens, 1)
    for i in range(layout.depth):
        q, k, v = linear(norm(x, f"blocks.{i}.ln1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (layout.heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(layout.dim // layout.heads)).softmax(-1)
        y = linear((weights @ v).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        x = x + state[f"_denoise_fn.blocks.{i}.gamma_1"] * y
        y = linear(F.gelu(linear(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.mlp.0")), f"blocks.{i}.mlp.2")
        x = x + state[f"_denoise_fn.blocks.{i}.gamma_2"] * y
    return linear(norm(x, "ln_f")[:, :N], "head")


@torch.no_grad()
def sample(state: State, layout: Layout, uniforms: list[Tensor], known=None, keep=None, temperature=0.9) -> Tensor:
    """The public loop with all T steps: z_t → p_0 → eq. (10) with t - 1, ending at t = 1 with a threshold.

    uniforms: T draws (B, N, c): of z_T, then of each z_{t-1} but the last.  known (B, N, c), keep (B, N, c): clean bits
    that are put back after every step.
    """
    T, shape = layout.steps, uniforms[0].shape
    k = [1 - t / T for t in range(T + 1)]  # linear
    beta = [1.0, *(k[t] / k[t - 1] for t in range(1, T + 1))]
    z = (uniforms[0] < 0.5).float()
    z = z if keep is None else torch.where(keep, known, z)
    for i, t in enumerate(range(T, 0, -1)):
        logits = denoise(state, layout, z, torch.full((shape[0],), t)) / temperature
        flip = logits.sigmoid()
        p0 = z * (1 - flip) + (1 - z) * flip
        if t > 1:
            q0 = torch.stack([p0, 1 - p0], -1) * k[t - 1] + 0.5 * (1 - k[t - 1])
            one_step = torch.stack([z, 1 - z], -1) * beta[t] + 0.5 * (1 - beta[t])
            unnormed = q0 * one_step
            z = (uniforms[i + 1] < (unnormed / unnormed.sum(-1, keepdim=True))[..., 0]).float()
        else:
            z = (p0 > 0.5).float()
        z = z if keep is None else torch.where(keep, known, z)
    return z


def make_autoencoder(layout: Layout, seed: int = 0) -> State:
    """Random weights, with the entries nobody needs."""
    torch.manual_seed(seed)
    state: State = {}
    probs = encode(state, layout, torch.randn(1, 3, layout.size, layout.size), make=True)
    decode(state, layout, (probs > 0.5).float(), make=True)
    state["ae.generator.logsigma.0.weight"] = torch.randn(layout.nf, layout.nf, 3, 3)
    state["disc.main.0.weight"], state["disc.main.3.num_batches_tracked"] = torch.randn(4, 3, 4, 4), torch.tensor(7)
    return state


def make_prior(layout: Layout, autoencoder: State, seed: int = 1, scheduler: bool = True) -> State:
    """Random weights of a prior on this autoencoder."""
    torch.manual_seed(seed)
    D, side = layout.dim, layout.size // 2 ** (len(layout.ch_mult) - 1)
    shapes = {
        "pos_emb": (1, side * side, D),
        "tok_emb.weight": (layout.bits, D),
        "head.weight": (layout.bits, D),
        "head.bias": (layout.bits,),
        "ln_f.weight": (D,),
        "ln_f.bias": (D,),
    }
    shapes |= {f"time_step_embedding.{n}.weight": (D, D) for n in ("l0", "linear")}
    shapes |= {f"time_step_embedding.{n}.bias": (D,) for n in ("l0", "linear")}
    if layout.classes:
        shapes["cls_embedding.weight"] = (layout.classes, D)
    if layout.text:
        shapes |= {"cls_embedding.weight": (D, layout.text), "cls_embedding.bias": (D,)}
    for i in range(layout.depth):
        block = {"gamma_1": (D,), "gamma_2": (D,), "attn.qkv": (3 * D, D), "attn.proj": (D, D)}
        block |= {"mlp.0": (4 * D, D), "mlp.2": (D, 4 * D), "ln1": (D,), "ln2": (D,)}
        for name, shape in block.items():
            if name.startswith("gamma"):
                shapes[f"blocks.{i}.{name}"] = shape
            else:
                shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    state = {f"_denoise_fn.{n}": torch.randn(s) * (s[-1] ** -0.5 if len(s) == 2 else 0.5) for n, s in shapes.items()}
    state["embedding_weight"] = autoencoder["ae.quantize.embed.weight"].clone()
    if scheduler:
        k = torch.tensor([1 - t / layout.steps for t in range(layout.steps + 1)])
        state |= {f"scheduler.{name}": k for name in ("k_final", "b_final", "beta", "cumbeta")}
    return state


def write(folder: Path, name: str, state: State, step: int = 1000, average: bool = True) -> Path:
    """Save a state dict where the public code does."""
    path = folder / "saved_models" / f"{name}_{'ema_' if average else ''}{step}.th"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path
