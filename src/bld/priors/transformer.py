"""The transformer that every prior shares (Appendix B.1): position tokens, a step token, a class token, plain blocks.

Dimension letters: B batch, N positions, c bits per position, D width, M tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.codes import CodeShape
from bld.diffusion.process import Process
from bld.errors import SettingError, did_you_mean
from bld.nn.attention import KeyValues, attend
from bld.priors.packed import packed
from bld.priors.replayed import Recordings, Replayed
from bld.runtime.precision import Autocast

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
        num_classes: classes to condition on; 0 is none
        condition_dim: V, width of a real vector (a text's, say) to condition on; 0 is none.  With neither, the prior is
            unconditional
        null_condition: what stands for "no condition": a learned token, or no token at all (absent), as in the paper's
            public code
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
    condition_dim: int = 0
    null_condition: Literal["learned", "absent"] = "learned"

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise SettingError(f"prior.{name} is {getattr(self, name)}, but must be 1 to {most}.")
        if self.num_classes < 0:
            raise SettingError(f"prior.num_classes is 0 (unconditional) or more, not {self.num_classes}.")
        if not 0 <= self.condition_dim <= MOST["dim"]:
            raise SettingError(f"prior.condition_dim is {self.condition_dim}, but must be 0 (none) to {MOST['dim']}.")
        if self.num_classes and self.condition_dim:
            raise SettingError(
                f"A prior is conditioned on classes or on vectors, not on {self.num_classes} classes and vectors of "
                f"width {self.condition_dim}: set one of num_classes and condition_dim to 0."
            )
        if not self.mlp_ratio > 0:
            raise SettingError(f"prior.mlp_ratio is {self.mlp_ratio}, but must be above 0; 4 is usual.")
        if not self.layer_scale >= 0:
            raise SettingError(f"prior.layer_scale is {self.layer_scale}, but must be at least 0, which is off.")
        known = {
            "step_embedding": ["table", "sinusoidal"],
            "evidence": ["none", "flip", "value"],
            "null_condition": ["learned", "absent"],
        }
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

    @property
    def is_conditional(self) -> bool:
        """Whether there is something to condition on."""
        return self.num_classes > 0 or self.condition_dim > 0


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, causal: bool = False, past: KeyValues | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) → (B, M, D); causal: a token sees itself, those before it, and those of `past`.

        visible: bool (B, L), which of all tokens, those of `past` first, the others see; None is all.
        """
        return self.out(attend(self.qkv(x), self.heads, causal, past, visible))


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

    def forward(
        self, x: Tensor, causal: bool = False, past: KeyValues | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) → (B, M, D)."""
        y = self.attention(self.norm1(x), causal, past, visible)
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


class VectorToken(nn.Module):
    """A vector as a token: centred and scaled, then through a trained linear map.

    mean (V,), scale (): of the vectors it is trained on, kept with the weights; 0 and 1 until they are set.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, V) → (B, D)."""
        centred = (vectors.float() - self.mean.float()) / self.scale.float()
        return self.project(centred.to(self.project.weight.dtype))


class Transformer(nn.Module):
    """What the priors have in common; each says how its codes become tokens, and which of them may see which."""

    is_walked = False  # whether a sampler takes one position after another
    frozen_in: Autocast | None = None  # of a copy for inference: the precision that it keeps
    _recordings: Recordings | None = None
    _compiled_with: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        shape, dim = config.code_shape, config.dim
        self.embed = nn.Linear(shape.c, dim)
        self.positions = nn.Parameter(sine_positions(shape.h, shape.w, dim))
        table = config.step_embedding == "table"
        self.step = StepTable(config.steps, dim) if table else StepSinusoids(config.steps, dim)
        learned = config.null_condition == "learned"
        # One row more than there are classes: the learned token that stands for "no class".
        self.classes = nn.Embedding(config.num_classes + learned, dim) if config.num_classes else None
        self.vectors = VectorToken(config.condition_dim, dim) if config.condition_dim else None
        self.no_vector = nn.Parameter(0.02 * torch.randn(dim)) if config.condition_dim and learned else None
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.mlp_ratio, config.layer_scale) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, shape.c)
        self._initialise()

    @classmethod
    def of(cls, config: DenoiserConfig, process: Process) -> Self:
        """The untrained network of a process."""
        return cls(config)

    def _initialise(self) -> None:
        """Small normal weights, residual branches scaled down with depth, a head that starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.embed.weight, std=self.config.code_bits**-0.5)
        if self.vectors is not None:
            nn.init.normal_(self.vectors.project.weight, std=self.config.condition_dim**-0.5)
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
        """The label that stands for "no class"."""
        return self.config.num_classes

    def no_condition(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """The condition that stands for none, `count` times."""
        V = self.config.condition_dim
        if V:
            return torch.zeros(count, 1 + V, device=device)
        return torch.full((count,), self.null_label, device=device)

    def dropped(self, condition: Tensor, drop: Tensor) -> Tensor:
        """The condition without that of the samples in `drop`, bool (B,)."""
        if not self.config.condition_dim:
            return condition.masked_fill(drop, self.null_label)
        return _marked(condition, self.config.condition_dim).masked_fill(drop.unsqueeze(1), 0)

    def for_inference(self) -> Self:
        """A copy of this network as it is now, for many forwards without gradients: frozen, its blocks packed.

        Whoever samples or measures takes one at the start, and another after the weights have changed: nothing that
        happens to this network later reaches the copy.  Wherever it is called, in whichever thread, it computes in the
        precision of the autocast that is on here, up to rounding what this network does.  The copy of a compiled
        network is compiled; that of a copy is itself.
        """
        if self.frozen_in is not None:
            return self
        precision = Autocast.here(self.device)
        compiled = self._compiled_call_impl is not None and not self.is_walked
        with torch.inference_mode(False), torch.no_grad():  # what is made in that mode can be used in no other
            blocks = None if compiled else packed(self.blocks, precision)
            copied = copy.deepcopy(self, {} if blocks is None else {id(self.blocks): blocks})
        copied.frozen_in = precision
        if compiled:  # by what was compiled before: the copies differ in nothing that compiling looks at
            copied.compile(*self._compiled_with[0], **self._compiled_with[1])
        elif self.device.type == "cuda":
            copied._recordings = Recordings()
        return copied.eval().requires_grad_(False)

    def for_sampling(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """What a sampler calls for one batch: the network itself, unless it can remember what it has computed.

        What `for_inference` gave replays small batches on a GPU from a recording, unless it is compiled.
        """
        return self if self._recordings is None else Replayed(self, self._recordings)

    def compile(self, *args: Any, **options: Any) -> None:
        """Run torch.compile's version from now on, here and in copies; the arguments are torch.compile's."""
        self._compiled_with = args, options
        super().compile(*args, **options)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """`forward`; a frozen copy's in its own precision."""
        if self.frozen_in is None:
            return super().__call__(*args, **named)
        with self.as_frozen():
            return super().__call__(*args, **named)

    @contextmanager
    def as_frozen(self) -> Iterator[None]:
        """Around what is computed with a frozen copy: its own precision, no gradients; else nothing."""
        if self.frozen_in is None:
            yield
            return
        with torch.no_grad(), self.frozen_in.again():
            yield

    def condition(self, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Step token, then the condition's if there is one, (B, 1 or 2, D); and in which samples that can be seen.

        condition: labels, int64 (B,) in 0 … num_classes, the last for none; or vectors, float: (B, V), or (B, 1 + V)
            where each begins with 1, or is zeros for none.  None is none for all.
        The second result, bool (B,), is None where it can be seen in all.
        """
        step, config = self.step(t), self.config
        absent = config.null_condition == "absent"
        given = None
        if not config.is_conditional or (condition is None and absent):
            tokens = [step]
        else:
            token, given = self._condition_token(len(t), condition)
            tokens = [step, token]
        # Looking at a mask on a GPU would make every step wait for it, and break a compiled graph.
        may_look = given is not None and given.device.type == "cpu" and not torch.compiler.is_compiling()
        seen_in_all = not absent or given is None or (may_look and bool(given.all()))
        return torch.stack(tokens, 1).to(self.positions.dtype), None if seen_in_all else given

    def _condition_token(self, count: int, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """((B, D), bool (B,): where it is a condition, None for all); with "learned", the null token elsewhere."""
        if condition is None:
            condition = self.no_condition(count, self.device)
        if self.classes is not None:
            if condition.ndim != 1 or condition.is_floating_point():
                raise SettingError(f"This prior wants labels, int64 (B,), not {_kind_of(condition)}.")
            given = condition != self.null_label
            absent = self.config.null_condition == "absent"
            return self.classes(condition.masked_fill(~given, 0) if absent else condition), given
        V = self.config.condition_dim
        assert self.vectors is not None
        if condition.ndim != 2 or condition.shape[1] not in (V, 1 + V) or not condition.is_floating_point():
            raise SettingError(f"This prior wants vectors, float (B, {V}), not {_kind_of(condition)}.")
        marks = condition[:, 0] > 0 if condition.shape[1] > V else None
        token = self.vectors(condition[:, -V:])
        if marks is not None and self.no_vector is not None:
            token = torch.where(marks.unsqueeze(1), token, self.no_vector.to(token.dtype))
        return token, marks

    def see_all(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Position tokens (B, N, D), each seeing all → outputs (B, N, c), float32."""
        N = x.shape[1]
        tokens, given = self.condition(t, condition)
        x = torch.cat([x, tokens.to(x.dtype)], 1)  # (B, N + 1 or 2, D)
        visible = None if given is None else F.pad(given.unsqueeze(1), (x.shape[1] - 1, 0), value=True)
        for block in self.blocks:
            x = block(x, visible=visible)
        return self.to_logits(x[:, :N])

    def to_logits(self, x: Tensor) -> Tensor:
        """What the blocks give (B, M, D) → outputs (B, M, c), float32."""
        return self.head(self.norm(x.to(self.head.weight.dtype))).float()


def _marked(vectors: Tensor, width: int) -> Tensor:
    """Vectors (B, V) → (B, 1 + V), each beginning with 1 for "given"; those that do already stay."""
    return vectors if vectors.shape[1] > width else F.pad(vectors, (1, 0), value=1)


def _kind_of(condition: Tensor) -> str:
    return f"{str(condition.dtype).removeprefix('torch.')} {tuple(condition.shape)}"


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
