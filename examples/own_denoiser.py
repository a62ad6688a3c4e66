"""Sample with a denoiser that nobody trained: Bayes' rule on a data set.

    python examples/own_denoiser.py

`sample_codes` takes any callable. For a data set of M codes the perfect denoiser can be written down: the posterior of
each code given the noised bits, and from it what every bit was. Sampling with it gives back the data set: all that a
model with no idea of anything between its examples can do, and a check of the whole chain.
"""

import torch
from sklearn.datasets import load_digits

import bld
from bld.seeding import keyed_draws

codes = torch.tensor(load_digits().data > 7).to(torch.uint8)  # (M, 64) black and white digits
diffusion = bld.BernoulliDiffusion(bld.NoiseSchedule("cosine", steps=64), target="z0")


def posterior(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Logits of P(z_0 = 1 | z_t), (B, 64, 1)."""
    differing = torch.cdist(z_t.squeeze(-1).double(), codes.double(), p=1)  # (B, M): in how many bits?
    flip = torch.tensor([(1 - diffusion.retention(int(step))) / 2 for step in t], dtype=torch.float64).unsqueeze(1)
    log_likelihood = differing * flip.log() + (64 - differing) * (1 - flip).log()  # log q(z_t | z_0), eq. (5)
    weights = log_likelihood.softmax(1)  # P(z_0 = code | z_t), all codes being equally likely before
    return (weights @ codes.double()).clamp(1e-9, 1 - 1e-9).logit().unsqueeze(-1)


def look(step: bld.diffusion.SamplingStep) -> None:
    """A callback sees every step: here, how far the samples still are from any digit."""
    if step.index % 16 == 15:
        nearest = torch.cdist(step.codes.squeeze(-1).float(), codes.float(), p=1).min(1).values
        print(f"at step {step.s:2} of {diffusion.steps} the nearest digit differs in {nearest.mean():4.1f} of 64 bits")


samples = bld.sample_codes(
    posterior,
    shape=(16, 64, 1),
    diffusion=diffusion,
    temperature=1.0,  # the posterior as it is
    generators=keyed_draws(0, "sample", range(16)),
    callback=look,
)
found = (samples.squeeze(-1).unsqueeze(1) == codes).all(-1).any(1)
print(f"{int(found.sum())} of {len(samples)} samples are digits of the data set, bit for bit.")
