"""The paper's public code, as far as speed goes: its denoiser's layers in its order, for comparison.

Pre-norm blocks with one projection for queries, keys and values, scores scaled and softened after the product, trained
scales on both residual branches; probabilities in float32 from logits.  Written after its description, not copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PublicBlock(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma_1, self.gamma_2 = (nn.Parameter(1e-5 * torch.ones(dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (C // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.gamma_1 * self.proj((weights @ v).transpose(1, 2).reshape(B, N, C))
        return x + self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PublicDenoiser(nn.Module):
    """24 × 512 × 8 on 16×16×32 bits."""

    def __init__(self, bits: int = 32, positions: int = 256, dim: int = 512, depth: int = 24, heads: int = 8):
        super().__init__()
        self.tok_emb = nn.Linear(bits, dim, bias=False)
        self.pos_emb = nn.Parameter(torch.zeros(1, positions, dim))
        self.linear1, self.linear2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(PublicBlock(dim, heads) for _ in range(depth))
        self.ln_f, self.head = nn.LayerNorm(dim), nn.Linear(dim, bits)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        half = self.linear1.in_features // 2
        frequency = torch.exp(-torch.arange(half, device=t.device) * (9.21 / (half - 1)))
        angle = t.float()[:, None] * frequency
        step = self.linear2(F.silu(self.linear1(torch.cat([angle.sin(), angle.cos()], 1))))
        x = torch.cat([self.tok_emb(2 * z.float() - 1) + self.pos_emb, step[:, None]], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x[:, :-1])).float()
