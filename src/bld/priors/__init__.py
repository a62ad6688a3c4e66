"""Networks that model the distribution of codes, and the alternatives to Bernoulli diffusion (Table 5, Tables 1-3).

base              what a kind of prior is, and the list of kinds
transformer       the body they share: same blocks, same number of parameters
inference         a copy of it for sampling: packed weights, CUDA graphs
bernoulli         Bernoulli diffusion's network; its mathematics is in `bld.diffusion`
autoregressive    one position after another, exact likelihood
absorbing         positions masked and revealed, a bound
gaussian          noise prediction on real-valued latents
"""

from importlib import import_module
from pkgutil import iter_modules

from bld.priors.absorbing import AbsorbingDenoiser, AbsorbingDiffusion
from bld.priors.autoregressive import Autoregression, AutoregressiveTransformer
from bld.priors.base import KINDS, DiffusionSettings, PriorKind
from bld.priors.bernoulli import Denoiser
from bld.priors.config import DenoiserConfig
from bld.priors.gaussian import GaussianDenoiser, GaussianDiffusion
from bld.priors.transformer import Transformer

__all__ = [
    "KINDS",
    "AbsorbingDenoiser",
    "AbsorbingDiffusion",
    "Autoregression",
    "AutoregressiveTransformer",
    "Denoiser",
    "DenoiserConfig",
    "DiffusionSettings",
    "GaussianDenoiser",
    "GaussianDiffusion",
    "PriorKind",
    "Transformer",
]

for _module in iter_modules(__path__):  # a kind is found by its file
    import_module(f"{__name__}.{_module.name}")
