"""Steps, positions and conditions as vectors of the width of a transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        return row_by_row(self.out, F.silu(row_by_row(self.expand, angles.to(self.out.weight.dtype))))


class VectorToken(nn.Module):
    """A vector as a token: centred and scaled, then through a trained linear map.

    Attributes:
        mean: (V,), of the vectors it is trained on; kept with the weights, 0 until it is set.
        scale: a scalar, of the same vectors; kept with the weights, 1 until it is set.
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
        return row_by_row(self.project, centred.to(self.project.weight.dtype))


def row_by_row(linear: nn.Linear, x: Tensor) -> Tensor:
    """The layer of x (B, D), one row per sample; on a CPU without gradients a row's numbers are those of it alone.

    Of several rows at once they are rounded otherwise for other B, by which a sample would depend on its batch.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return linear(x)
    return torch.cat([linear(row) for row in x.split(1)])


def marked(vectors: Tensor, width: int) -> Tensor:
    """Vectors (B, V) → (B, 1 + V), each beginning with 1 for "given"; those of width 1 + V stay. `width` is V."""
    return vectors if vectors.shape[1] > width else F.pad(vectors, (1, 0), value=1)


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
