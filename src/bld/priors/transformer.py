"""The transformer that every prior shares (Appendix B.1): position tokens, a step token, a class token, plain blocks.

Dimension letters: B batch, N positions, c bits per position, D width, M tokens, of patches of positions and others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.codes import CodeShape, bits_to_index, from_patches, to_patches
from bld.diffusion.process import Process
from bld.errors import SettingError
from bld.nn.attention import KeyValues, attention
from bld.priors.config import DenoiserConfig
from bld.priors.embeddings import StepSinusoids, StepTable, VectorToken, marked, sine_positions
from bld.priors.inference import GraphRecordings, GraphReplay, pack_blocks
from bld.runtime.precision import Autocast


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
        """(B, M, D) → (B, M, D).

        Args:
            x: (B, M, D).
            causal: whether a token sees only itself, those before it, and those of `past`.
            past: keys and values of the tokens before these; it is extended by these.
            visible: bool (B, L), which of all tokens, those of `past` first, the others see; None is all.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, M, D/heads)
        if past is not None:
            k, v = past.extend(k, v)
        return self.out(attention(q, k, v, causal, visible).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, layer_scale: float):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.expand, self.activate, self.contract = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        scaled = layer_scale > 0
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None

    def forward(
        self, x: Tensor, causal: bool = False, past: KeyValues | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) → (B, M, D); the other arguments are those of `Attention.forward`."""
        y = self.attention(self.norm1(x), causal, past, visible)
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.contract(self.activate(self.expand(self.norm2(x))))
        return x + (y if self.scale2 is None else y * self.scale2)


class Transformer(nn.Module):
    """What the priors have in common; each says how its codes become tokens, and which of them may see which."""

    is_sequential = False  # whether a sampler takes one position after another
    takes_patches = True  # whether a token may stand for several positions
    frozen_in: Autocast | None = None  # of a copy for inference: the precision that it keeps
    _recordings: GraphRecordings | None = None
    _compiled_with: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        shape, dim, side = config.code_shape, config.dim, config.patch_size
        self.check(config)
        self.embed: Any = nn.Embedding(2**shape.c, dim) if config.entries else nn.Linear(shape.c * side**2, dim)
        self.positions = nn.Parameter(sine_positions(shape.h // side, shape.w // side, dim))
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
        self.head = nn.Linear(dim, 2**shape.c if config.entries else shape.c * side**2)
        self._initialise()

    @classmethod
    def check(cls, config: DenoiserConfig) -> None:
        """Raises SettingError for a config that this kind of network cannot have."""
        if config.patch_size > 1 and not cls.takes_patches:
            raise SettingError(
                f"prior.patch_size is {config.patch_size}, but this prior's tokens are single positions: set it to 1."
            )

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
        nn.init.normal_(self.embed.weight, std=1.0 if self.config.entries else self.embed.in_features**-0.5)
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
        """The condition that stands for none, `count` times: labels (count,), or zeros (count, 1 + V) for vectors."""
        V = self.config.condition_dim
        if V:
            return torch.zeros(count, 1 + V, device=device)
        return torch.full((count,), self.null_label, device=device)

    def dropped(self, condition: Tensor, drop: Tensor) -> Tensor:
        """The condition without that of the samples in `drop`, bool (B,)."""
        if not self.config.condition_dim:
            return condition.masked_fill(drop, self.null_label)
        return marked(condition, self.config.condition_dim).masked_fill(drop.unsqueeze(1), 0)

    def for_inference(self) -> Self:
        """A copy of this network as it is now, for many forwards without gradients: frozen, its blocks packed.

        Take one before sampling or measuring, and another after the weights have changed: later changes of this network
        do not reach the copy.  In whichever thread the copy is called, it computes in the precision of the autocast
        that is on here, and up to rounding gives what this network gives.  The copy of a compiled network is compiled;
        that of a copy is the copy itself.
        """
        if self.frozen_in is not None:
            return self
        precision = Autocast.here(self.device)
        compiled = self._compiled_call_impl is not None and not self.is_sequential
        with torch.inference_mode(False), torch.no_grad():  # what is made in that mode can be used in no other
            blocks = None if compiled else pack_blocks(self.blocks, precision)
            copied = copy.deepcopy(self, {} if blocks is None else {id(self.blocks): blocks})
        copied.frozen_in = precision
        if compiled:  # by what was compiled before: the copies differ in nothing that compiling looks at
            copied.compile(*self._compiled_with[0], **self._compiled_with[1])
        elif self.device.type == "cuda":
            copied._recordings = GraphRecordings()
        return copied.eval().requires_grad_(False)

    def for_sampling(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """What a sampler calls for one batch: the network itself, unless it can remember what it has computed.

        What `for_inference` gave replays small batches on a GPU from a recording, unless it is compiled.
        """
        return self if self._recordings is None else GraphReplay(self, self._recordings)

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
        """The tokens of step and condition.

        Args:
            t: (B,) int64 in 1 … T.
            condition: labels, int64 (B,) in 0 … num_classes, the last for none; or vectors, float: (B, V), or
                (B, 1 + V) where each begins with 1, or is zeros for none. None is none for all.

        Returns:
            The step token, then the condition's if there is one, (B, 1 or 2, D); and bool (B,), in which samples the
            condition's can be seen: None where it can in all.

        Raises:
            SettingError: for a condition of another kind or shape.
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

    def tokens_of(self, z: Tensor) -> Tensor:
        """Numbers (B, N, c) that stand for a code → a token for each of its M patches, (B, M, D).

        Raises:
            SettingError: for codes of another shape.
        """
        shape = self.code_shape
        if z.shape[1:] != (shape.positions, shape.c):
            raise SettingError(f"This prior takes codes (B, {shape.positions}, {shape.c}), not {tuple(z.shape)}.")
        z = to_patches(z.to(self.positions.dtype), self.code_shape, self.config.patch_size)
        return self.embed(bits_to_index(z > 0) if self.config.entries else z)

    def see_all(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Tokens of the patches, each seeing all → outputs of the positions (B, N, c) or (B, N, 2^c), float32.

        Args:
            x: (B, M, D), not yet told apart by where they are.
            t: (B,) int64 in 1 … T.
            condition: as in `condition`.
        """
        M = x.shape[1]
        others, given = self.condition(t, condition)
        visible = None if given is None else F.pad(given.unsqueeze(1), (M + others.shape[1] - 1, 0), value=True)
        x = self.through(x, after=others, visible=visible)
        logits = self.to_logits(x[:, :M])
        return logits if self.config.entries else from_patches(logits, self.code_shape, self.config.patch_size)

    def through(
        self,
        x: Tensor,
        first: int = 0,
        before: Tensor | None = None,
        after: Tensor | None = None,
        *,
        causal: bool = False,
        past: Sequence[KeyValues] | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Tokens through all blocks, those of patches told where they are.

        Args:
            x: (B, M, D), the tokens of patches first … first + M - 1.
            first: the first patch, in 0 … N/patch_size² - 1.
            before: tokens without a place, as those of step and condition, before them.
            after: the same after them.
            causal: as in `Attention.forward`.
            past: of each block, as in `Attention.forward`.
            visible: as in `Attention.forward`.

        Returns:
            What the last block gives for all these tokens, in their order, (B, …, D).
        """
        x = x + self.positions[first : first + x.shape[1]]
        x = torch.cat([part.to(x.dtype) for part in (before, x, after) if part is not None], 1)
        for i, block in enumerate(self.blocks):
            x = block(x, causal, past[i] if past else None, visible)
        return x

    def to_logits(self, x: Tensor) -> Tensor:
        """What the blocks give (B, M, D) → outputs (B, M, c), float32; where a position is an entry, (B, M, 2^c)."""
        return self.head(self.norm(x.to(self.head.weight.dtype))).float()


def _kind_of(condition: Tensor) -> str:
    return f"{str(condition.dtype).removeprefix('torch.')} {tuple(condition.shape)}"
