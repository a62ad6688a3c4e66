"""The autoregressive prior (Table 5): one position after another in row-major order, its c bits given all before it.

Its likelihood is exact: log p(z) = Σ_i Σ_j log Bern(z_ij; σ(logits_ij)), the logits at position i seeing z_<i only.
The bits of one position are independent given those before it, unless the position is an entry of a codebook.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bld.codes import bits_to_index
from bld.diffusion.process import Callback, Denoise, Generators, PriorLoss, SamplingStep, check_sampling, kept_positions
from bld.errors import SettingError
from bld.nn.attention import KeyValues
from bld.numbers import whole_number
from bld.priors.base import PositionByPosition, PriorKind, register
from bld.priors.position import draw, nats, probabilities
from bld.priors.transformer import Transformer


class AutoregressiveTransformer(Transformer):
    """Codes z_0 (B, N, c) → logits (B, N, c): those at position i have seen positions before i, and the condition.

    With `entries` the logits are (B, N, 2^c), of the entries of a codebook.

    The step token, always that of step 1, stands for the beginning of the sequence.
    """

    is_sequential = True
    takes_patches = False

    def forward(self, z0: Tensor, t: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """All positions at once, as in training: logits (B, N, c), float32.

        Args:
            z0: (B, N, c) bits of any dtype.
            t: not used.
            condition: labels or vectors, as `Transformer.condition` takes them; None is none for all.
        """
        start, given = self.start(len(z0), condition)
        S, N = start.shape[1], z0.shape[1]
        x = self.through(self._bits(z0[:, :-1]), before=start, causal=True, visible=_visible(given, S + N - 1))
        return self.to_logits(x[:, S - 1 :])

    def for_sampling(self) -> OneByOne:
        """The positions one after another, each token computed once."""
        return OneByOne(self)

    def start(self, count: int, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens before the first position, of which the last predicts that position.

        A condition's token that can be absent comes first, so that the step token predicts with it or without.

        Args:
            count: B, how many codes.
            condition: labels or vectors, as `Transformer.condition` takes them; None is none for all.

        Returns:
            Tokens (B, 1 or 2, D), and bool (B,): in which samples the condition's can be seen; None where it can in
            all.
        """
        tokens, given = self.condition(torch.ones(count, dtype=torch.long, device=self.device), condition)
        return tokens.flip(1) if self.config.null_condition == "absent" else tokens, given

    def _bits(self, z: Tensor) -> Tensor:
        """(B, n, c) of any n positions → tokens (B, n, D)."""
        return self.embed(bits_to_index(z) if self.config.entries else 2 * z.to(self.positions.dtype) - 1)


class OneByOne:
    """Called once per position in order: gives that position's logits, and keeps keys and values of those before."""

    def __init__(self, network: AutoregressiveTransformer):
        self.network = network
        self.position = 0
        self.past = [KeyValues() for _ in network.blocks]
        self.given: Tensor | None = None  # where the first token can be seen
        self.started = 0  # tokens before the first position

    def __call__(self, z: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, N, c) with all positions before this one in place → logits (B, 1, c)."""
        with self.network.as_frozen():
            return self._next(z, condition)

    def _next(self, z: Tensor, condition: Tensor | None) -> Tensor:
        network, i = self.network, self.position
        start = None
        if i == 0:
            start, self.given = network.start(len(z), condition)
            self.started = start.shape[1]
        first = max(i - 1, 0)
        visible = _visible(self.given, self.started + i)
        x = network.through(network._bits(z[:, first:i]), first, start, causal=True, past=self.past, visible=visible)
        self.position += 1
        return network.to_logits(x[:, -1:])


def _visible(given: Tensor | None, length: int) -> Tensor | None:
    """Bool (B, length): all tokens but the first where that is not given; None where it is in all."""
    return None if given is None else F.pad(given.unsqueeze(1), (0, length - 1), value=True)


class Autoregression(PositionByPosition):
    """Position after position.

    Args:
        positions: N; there are as many steps, and none can be skipped.
    """

    kind = "autoregressive"
    may_skip = False

    def training_loss(
        self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None, vlb_weight: float = 0.0
    ) -> PriorLoss:
        """Cross-entropy in nats per bit; nothing is drawn."""
        return PriorLoss(nats(denoise(z0, t), z0).mean() / z0.shape[2])

    def bound_at(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None) -> Tensor:
        """float64 (B,): the exact code length in bits, the same for every t."""
        return nats(denoise(z0, t), z0).double().sum(1) / math.log(2)

    @torch.no_grad()
    def likelihood_bits(
        self, denoise: Denoise, z0: Tensor, *, steps: int | None = None, draws: int = 1, generators: Generators = None
    ) -> Tensor:
        """-log₂ p(z_0), exact, in bits per code, float64 (B,).

        Raises:
            SettingError: for another number of `steps` than N.
        """
        self._refuse_skipping(steps)
        return self.bound_at(denoise, z0, torch.ones(len(z0), dtype=torch.long, device=z0.device))

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        shape: tuple[int, int, int],
        *,
        steps: int | None = None,
        temperature: float = 0.9,
        generators: Generators = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        callback: Callback | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw codes, (n, N, c) uint8.

        Args:
            denoise: called once per position in order; gives the logits of that one (n, 1, c), or of all (n, N, c).
            shape: (n, N, c).
            steps: N, or None.
            temperature: τ > 0 in σ(logits/τ).
            generators: one per sample; a sample depends on its own only.
            known: (n or 1, N, c) bits of an inpainting, with `mask`; they are put in place in the order of the
                positions, so that only later positions see them.
            mask: (N,) or (n, N), True where bits are to be made.
            callback: called with a `SamplingStep` after each position.
            device: where the codes are drawn.

        Raises:
            SettingError: naming the value that is not possible.
        """
        check_sampling(shape, temperature, known, mask)
        self._refuse_skipping(steps)
        n, N, c = shape
        if self.positions != N:
            raise SettingError(f"This prior generates {self.positions} positions, not {N}.")
        z = torch.zeros(shape, dtype=torch.uint8, device=device)
        kept = None if known is None or mask is None else kept_positions(known.to(z), mask.to(device), shape)
        for i in range(N):
            logits = denoise(z, torch.full((n,), i + 1, device=device))
            logits = logits[:, -1 if logits.shape[1] == 1 else i].float() / temperature
            z[:, i] = draw(logits, c, generators)
            if kept is not None:
                z[:, i] = torch.where(kept[1][:, i, None], kept[0][:, i], z[:, i])
            if callback is not None:
                callback(SamplingStep(i, N, N - i, N - i - 1, z.clone(), probabilities(logits, c)))
        return z

    def _refuse_skipping(self, steps: int | None) -> None:
        if steps is not None and whole_number("The number of steps", steps) != self.positions:
            raise SettingError(
                f"The autoregressive prior takes one step per position, {self.positions} in all, not {steps}: "
                "leave the number of steps out."
            )


register(
    PriorKind(
        "autoregressive",
        AutoregressiveTransformer,
        Autoregression,
        lambda diffusion, shape, scale: Autoregression(shape.positions),
        steps=lambda diffusion, shape: shape.positions,
        one_pass=True,
        takes_entries=True,
    )
)
