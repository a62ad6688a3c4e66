"""Use the diffusion mathematics with a network of your own.

    python examples/own_network.py

The diffusion is formulas and nothing else: a network is any callable `denoise(z_t, t)` that says of each bit how likely
it is to have been flipped. Here it is a small MLP, and the codes are black and white digits, 64 pixels of 1 bit each:
there is no tokenizer.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import bld
from bld.seeding import keyed_draws

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000

pixels = torch.tensor(load_digits().data)
codes = (pixels > 7).to(torch.uint8).unsqueeze(-1)  # (1797, N = 64 positions, c = 1 bit)
train, held_out = codes[:1600], codes[1600:]

# 32 steps from bits to noise; the network's logits mean "has this bit been flipped?".
diffusion = bld.BernoulliDiffusion(bld.NoiseSchedule("linear", steps=32), target="flip")


class FlipMLP(nn.Module):
    """(z_t (B, 64, 1), t (B,)) → logits (B, 64, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Embedding(diffusion.steps + 1, 256)
        self.enter, self.leave = nn.Linear(64, 256), nn.Linear(256, 64)
        self.middle = nn.Sequential(nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU())
        # What a bit says about itself need not be learned; see docs/how-it-works.md.
        self.register_buffer("known", diffusion.evidence_logits())

    def forward(self, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """One logit a bit, and 64 bits at once: each is judged by all others."""
        z = 2 * z_t.squeeze(-1).float() - 1
        p = self.leave(self.middle(self.enter(z) + self.step(t)))  # what the picture should be, as logits
        return (self.known[t - 1].unsqueeze(1) - z * p).unsqueeze(-1)  # a flip where bit and picture disagree


torch.manual_seed(0)
network = FlipMLP()
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
before = diffusion.likelihood_bits(network, held_out).mean()

for _ in range(steps):  # Algorithm 1
    z_0 = train[torch.randint(len(train), (128,))]
    t = torch.randint(1, diffusion.steps + 1, (128,))
    z_t = diffusion.diffuse(z_0, t)  # eq. (5)
    loss = diffusion.loss(network(z_t, t), z_0, z_t, t)  # eq. (13): loss.total = loss.residual + 0.1 · loss.vlb
    optimizer.zero_grad()
    loss.total.backward()
    optimizer.step()

after = diffusion.likelihood_bits(network, held_out).mean()  # eq. (7)
print(f"Bits to write down a held-out digit of 64 pixels: {before:.1f} untrained, {after:.1f} trained.")

# Algorithm 2. Each sample has a generator of its own, so that it depends on nothing else.
samples = bld.sample_codes(network, (6, 64, 1), diffusion, generators=keyed_draws(0, "sample", range(6)))
for row in samples.view(6, 8, 8).permute(1, 0, 2).tolist():  # side by side
    print("   ".join("".join(" █"[bit] * 2 for bit in digit) for digit in row))
