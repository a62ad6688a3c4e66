"""How a network's weights move: by AdamW, or, inside its blocks, by Muon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from bld.training.accelerator import autocast_dtype
from bld.training.settings import TrainingSettings

INSIDE = frozenset({"blocks", "stages", "middle", "downs", "ups"})
"""The parts of a network, transformer or autoencoder, whose matrices and kernels lie between its ends."""
MATRIX_RATE = 2.0  # of a matrix, times the learning rate
MATRIX_WEIGHT_DECAY = 0.1
MOMENTUM = 0.95
RMS_OF_ADAM = 0.2  # of a number's step over the rate, so that rates mean the same for both
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
LOOKS_AT = ("cpu",)  # devices where looking at a number does not wait for others


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> AdamW:
    """The optimizer of a network, as the settings of its training say; fused, so that it can skip a step by itself."""
    betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
    if settings.optimizer == "adamw":
        return AdamW(network.parameters(), lr=settings.learning_rate, betas=betas, weight_decay=decay, fused=True)
    named, inside = list(network.named_parameters()), moved_by_muon(network)
    matrices, others = ([p for name, p in named if (name in inside) == wanted] for wanted in (True, False))
    device = matrices[0].device if matrices else torch.device("cpu")
    dtype = torch.bfloat16 if autocast_dtype("auto", device) == "bf16" else torch.float32
    return Muon(matrices, others, settings.learning_rate, betas, decay, dtype)


def moved_by_muon(network: nn.Module) -> set[str]:
    """Names of the parameters that Muon moves, the matrices and kernels inside a network, if it is asked for."""
    named = network.named_parameters()
    return {name for name, parameter in named if parameter.ndim in (2, 4) and INSIDE & set(name.split("."))}


class Muon(AdamW):
    """Steps of a network: Muon (Jordan et al. 2024) for some matrices, fused AdamW for its other parameters.

    A matrix moves by its momentum with all singular values made about 1, which learns from every direction of the
    gradient alike. A fused projection (3·D, D) counts as the three matrices that it holds, the kernel of a convolution
    (C', C, k, k) as the matrix (C', C·k·k).

    Args:
        matrices: the weights that Muon moves, matrices and kernels.
        others: the other parameters.
        learning_rate: of AdamW; matrices take `MATRIX_RATE` times as much.
        betas: AdamW's.
        weight_decay: AdamW's; matrices have `MATRIX_WEIGHT_DECAY`.
        dtype: of the products that make a matrix orthogonal, bfloat16 where that is fast.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype,
    ):
        groups: list[dict[str, Any]] = [{"params": list(others)}, {"params": list(matrices), "is_muon": True}]
        super().__init__(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; none, if `found_inf` says that one is not finite."""
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group.get("is_muon")]
            super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group.get("is_muon"):
                self._move(group["params"], MATRIX_RATE * group["lr"])

    def _move(self, parameters: Sequence[nn.Parameter], rate: float) -> None:
        bad: Tensor | None = getattr(self, "found_inf", None)
        if bad is not None and bad.device.type in LOOKS_AT:
            if bool(bad):
                return
            bad = None
        alike: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
                if not self.state[parameter]:  # a "step" there is only because AdamW loads no state without one
                    self.state[parameter] = {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        for (rows, columns), same in alike.items():
            height = rows // 3 if rows == 3 * columns else rows
            updates = torch.empty(len(same), rows, columns, dtype=self.dtype, device=same[0].device)
            for parameter, update in zip(same, updates, strict=True):
                update.copy_(self._update(parameter, bad).flatten(1))
            steps = orthogonal(updates.view(-1, height, columns)).view_as(updates)
            size = rate * RMS_OF_ADAM * max(height, columns) ** 0.5
            for parameter, step in zip(same, steps, strict=True):
                before = None if bad is None else parameter.clone()
                parameter.mul_(1 - rate * MATRIX_WEIGHT_DECAY).add_(step.view_as(parameter), alpha=-size)
                if bad is not None and before is not None:
                    parameter.copy_(torch.where(bad > 0, before, parameter))

    def _update(self, parameter: nn.Parameter, bad: Tensor | None) -> Tensor:
        """The gradient, carried on by the momentum (Nesterov), which it changes; where `bad` is set it does not."""
        momentum, gradient = self.state[parameter]["momentum"], parameter.grad
        assert gradient is not None
        if bad is not None:
            gradient = torch.where(bad > 0, momentum, gradient)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, a, b) → about their nearest orthogonal ones, by a quintic Newton-Schulz iteration in their dtype.

    Singular values come out between about 0.7 and 1.2, which serves as well as 1 and takes few iterations.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    rows, columns = x.shape[-2:]
    if x.dtype == torch.float32 and columns >= 2 * rows:
        x = _factor(x @ x.mT) @ x
        return x.mT if is_tall else x
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _factor(square: Tensor) -> Tensor:
    """What all iterations together multiply X by, from S = X·Xᵀ alone: for wide X in float32 half the work.

    An iteration multiplies X by a + b·S + c·S². All of these commute, so that the next S is their square times this
    one.
    """
    a, b, c = NEWTON_SCHULZ
    factor = last = None
    for _ in range(ITERATIONS):
        square = square if last is None else last @ square @ last
        last = torch.baddbmm(square, square, square, beta=b, alpha=c)
        last.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = last if factor is None else last @ factor
    assert factor is not None
    return factor
