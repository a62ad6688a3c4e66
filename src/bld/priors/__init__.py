"""Networks that model the distribution of codes."""

from bld.priors.denoiser import Denoiser, DenoiserConfig

__all__ = ["Denoiser", "DenoiserConfig"]
