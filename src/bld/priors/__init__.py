"""Networks that model the distribution of codes, and the alternatives to Bernoulli diffusion (Table 5, Tables 1-3).

transformer       the body they share: same blocks, same number of parameters
denoiser          Bernoulli diffusion's network; its mathematics is in `bld.diffusion`
autoregressive    one position after another, exact likelihood
absorbing         positions masked and revealed, a bound
gaussian          noise prediction on real-valued latents
"""

from bld.priors.absorbing import AbsorbingDenoiser, AbsorbingDiffusion
from bld.priors.autoregressive import Autoregression, AutoregressiveTransformer
from bld.priors.denoiser import Denoiser
from bld.priors.gaussian import GaussianDenoiser, GaussianDiffusion
from bld.priors.transformer import DenoiserConfig, Transformer

__all__ = [
    "NETWORKS",
    "AbsorbingDenoiser",
    "AbsorbingDiffusion",
    "Autoregression",
    "AutoregressiveTransformer",
    "Denoiser",
    "DenoiserConfig",
    "GaussianDenoiser",
    "GaussianDiffusion",
    "Transformer",
]

NETWORKS: dict[str, type[Transformer]] = {
    "bernoulli": Denoiser,
    "autoregressive": AutoregressiveTransformer,
    "absorbing": AbsorbingDenoiser,
    "gaussian": GaussianDenoiser,
}
"""The network of each `prior.kind`."""
