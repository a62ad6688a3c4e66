"""The transformer that every prior shares (Appendix B.1): position tokens, a step token, a class token, plain blocks.

Dimension letters: B batch, N positions, c bits per position, D width, M tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.attention import attention
from bld.codes import CodeShape
from bld.errors import SettingError, did_you_mean
from bld.priors.packed import fastest
from bld.priors.replayed import Replayed

# Far beyond use: so that a damaged or hostile config is refused before anything is allocated.
MOST = {
    "code_height": 4096,
    "code_width": 4096,
    "code_bits": 65_536,
    "steps": 1_000_000,
    "dim": 65_536,
    "depth": 1000,
    "heads": 1024,
}


@dataclass(frozen=True)
class DenoiserConfig:
    """What a prior's transformer looks like; the defaults are the paper's unconditional model, 24 × 512 × 8.

    Args:
        code_height: h, latent positions in a column
        code_width: w, latent positions in a row
        code_bits: c, bits per position
        steps: T, the steps of the process it is trained for
        num_classes: classes to condition on; 0 is unconditional
        dim: D, the width
        depth: number of transformer blocks
        heads: attention heads per block
        mlp_ratio: width of a block's MLP over D
        step_embedding: a table with one trained row per step, or sinusoids through a small MLP
        layer_scale: initial value of a trained scale on each residual branch; 0 leaves the scales out
        evidence: how the evidence that a noised bit carries about itself enters the logits: not at all, as the
            logit of a flip (target "flip"), or as the logit of the bit's own value (targets "z0", "previous")
    """

    code_height: int = 16
    code_width: int = 16
    code_bits: int = 32
    steps: int = 64
    num_classes: int = 0
    dim: int = 512
    depth: int = 24
    heads: int = 8
    mlp_ratio: float = 4.0
    step_embedding: Literal["table", "sinusoidal"] = "table"
    layer_scale: float = 0.0
    evidence: Literal["none", "flip", "value"] = "none"

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise SettingError(f"prior.{name} is {getattr(self, name)}, but must be 1 to {most}.")
        if self.num_classes < 0:
            raise SettingError(f"prior.num_classes is 0 (unconditional) or more, not {self.num_classes}.")
        if not self.mlp_ratio > 0:
            raise SettingError(f"prior.mlp_ratio is {self.mlp_ratio}, but must be above 0; 4 is usual.")
        if not self.layer_scale >= 0:
            raise SettingError(f"prior.layer_scale is {self.layer_scale}, but must be at least 0, which is off.")
        known = {"step_embedding": ["table", "sinusoidal"], "evidence": ["none", "flip", "value"]}
        for name, names in known.items():
            value = getattr(self, name)
            if value not in names:
                raise SettingError(f"Unknown prior.{name} '{value}'.{did_you_mean(value, names)}")
        if self.dim % self.heads:
            raise SettingError(f"prior.dim ({self.dim}) must be divisible by prior.heads ({self.heads}).")
        if self.dim % 4:
            raise SettingError(f"prior.dim ({self.dim}) must be divisible by 4, for the 2-D sine embedding.")

    @property
    def code_shape(self) -> CodeShape:
        """(h, w, c)."""
        return CodeShape(self.code_height, self.code_width, self.code_bits)


class KeyValues:
    """Keys and values of the tokens one attention layer has seen so far, (B, heads, M, D/heads) each."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens; returns those of all."""
        self.k = k if self.k is None else torch.cat([self.k, k], 2)
        self.v = v if self.v is None else torch.cat([self.v, v], 2)
        return self.k, self.v


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool = False, past: KeyValues | None = None) -> Tensor:
        """(B, M, D) → (B, M, D); causal: a token sees itself, those before it, and those of `past`."""
        return self.out(self.attend(self.qkv(x), causal, past))

    def attend(self, qkv: Tensor, causal: bool = False, past: KeyValues | None = None) -> Tensor:
        """Queries, keys and values in one (B, M, 3·D) → (B, M, D), before the projection out."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, M, D/heads)
        if past is not None:
            k, v = past.extend(k, v)
        return attention(q, k, v, causal).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, layer_scale: float):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        scaled = layer_scale > 0
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None

    def forward(self, x: Tensor, causal: bool = False, past: KeyValues | None = None) -> Tensor:
        """(B, M, D) → (B, M, D)."""
        y = self.attention(self.norm1(x), causal, past)
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.contract(F.gelu(self.expand(self.norm2(x))))
        return x + (y if self.scale2 is None else y * self.scale2)


class StepTable(nn.Module):
    """One trained token per step, initialised with sinusoids so that near steps start out alike."""

    def __init__(self, steps: int, dim: int):
        super().__init__()
        self.table = nn.Parameter(sinusoids(torch.arange(steps), dim, scale=4000 / steps))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) in 1 … T → (B, D)."""
        return self.table[t - 1]


class StepSinusoids(nn.Module):
    """Sinusoids of the step, scaled to the number of steps, through a two-layer MLP."""

    def __init__(self, steps: int, dim: int):
        super().__init__()
        self.steps, self.dim = steps, dim
        self.expand, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) in 1 … T → (B, D)."""
        angles = sinusoids(t - 1, self.dim, scale=4000 / self.steps)
        return self.out(F.silu(self.expand(angles.to(self.out.weight.dtype))))


class Transformer(nn.Module):
    """What the priors have in common; each says how its codes become tokens, and which of them may see which."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        shape, dim = config.code_shape, config.dim
        self.embed = nn.Linear(shape.c, dim)
        self.positions = nn.Parameter(sine_positions(shape.h, shape.w, dim))
        table = config.step_embedding == "table"
        self.step = StepTable(config.steps, dim) if table else StepSinusoids(config.steps, dim)
        # One row more than there are classes: the learned token that stands for "no class".
        self.classes = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.mlp_ratio, config.layer_scale) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, shape.c)
        self._initialise()

    def _initialise(self) -> None:
        """Small normal weights, residual branches scaled down with depth, a head that starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.embed.weight, std=self.config.code_bits**-0.5)
        for module in self.modules():
            if isinstance(module, Block):
                for last in (module.attention.out, module.contract):
                    nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * self.config.depth))
        nn.init.zeros_(self.head.weight)

    @property
    def code_shape(self) -> CodeShape:
        """(h, w, c)."""
        return self.config.code_shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positions.device

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"; it selects the learned null token."""
        return self.config.num_classes

    def for_sampling(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """What a sampler calls for one batch: the network itself, unless it can remember what it has computed.

        On a GPU small batches are replayed from a recording, unless the network is compiled.
        """
        return Replayed(self) if self.device.type == "cuda" and self._compiled_call_impl is None else self

    def condition(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """Step token, and class token where there are classes, (B, 1 or 2, D); no labels are null labels."""
        tokens = [self.step(t)]
        if self.classes is not None:
            tokens.append(self.classes(torch.full_like(t, self.null_label) if labels is None else labels))
        return torch.stack(tokens, 1).to(self.positions.dtype)

    def see_all(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Position tokens (B, N, D), each seeing all → outputs (B, N, c), float32."""
        N = x.shape[1]
        x = torch.cat([x, self.condition(t, labels).to(x.dtype)], 1)  # (B, N + 1 or 2, D)
        for block in fastest(self.blocks, x):
            x = block(x)
        return self.to_logits(x[:, :N])

    def to_logits(self, x: Tensor) -> Tensor:
        """What the blocks give (B, M, D) → outputs (B, M, c), float32."""
        return self.head(self.norm(x.to(self.head.weight.dtype))).float()


def sinusoids(position: Tensor, dim: int, scale: float = 1.0) -> Tensor:
    """(…,) → (…, dim): half sines, half cosines of scale·position at geometric frequencies 1 … 1/10000."""
    half = dim // 2
    frequency = torch.exp(-math.log(10000) / max(half - 1, 1) * torch.arange(half, device=position.device))
    angle = scale * position.float().unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def sine_positions(h: int, w: int, dim: int) -> Tensor:
    """The 2-D sine embedding (h·w, dim) the trained positions start from: half for the row, half for the column."""
    rows = sinusoids(torch.arange(h), dim // 2).unsqueeze(1).expand(h, w, -1)
    columns = sinusoids(torch.arange(w), dim // 2).unsqueeze(0).expand(h, w, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)
