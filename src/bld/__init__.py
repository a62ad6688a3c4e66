"""Binary Latent Diffusion: images as bits, and a Bernoulli diffusion that generates them.

    files ─▶ images ─▶ bits ─▶ noised bits ─▶ flip logits ─▶ bits ─▶ images ─▶ files
       data/    tokenizer/   diffusion/     priors/   diffusion/ tokenizer/  data/

Built on these: `serialization` (saved models), `pipeline` (a model in use), `training`, `planning` (what a run will
cost), `evaluation`, `report`, `experiments` (the paper's), `studio` (the web page), `cli`; under them `runtime`,
`io`, `nn`.

    >>> import bld
    >>> pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained("runs/flowers")
    >>> pipe(num_images=4, generator=0).images[0].save("flower.png")

The names below are loaded when first used, so that importing `bld` is quick and pulls in neither torch nor anything
optional.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bld._version import __version__

if TYPE_CHECKING:
    from bld.codes import CodeShape
    from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes
    from bld.errors import UserError
    from bld.pipeline import BinaryLatentDiffusionPipeline, PipelineOutput
    from bld.priors import Denoiser, DenoiserConfig
    from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

_HOMES = {
    "AutoencoderConfig": "bld.tokenizer",
    "BernoulliDiffusion": "bld.diffusion",
    "BinaryAutoencoder": "bld.tokenizer",
    "BinaryLatentDiffusionPipeline": "bld.pipeline",
    "CodeShape": "bld.codes",
    "Denoiser": "bld.priors",
    "DenoiserConfig": "bld.priors",
    "NoiseSchedule": "bld.diffusion",
    "PipelineOutput": "bld.pipeline",
    "UserError": "bld.errors",
    "sample_codes": "bld.diffusion",
}

__all__ = [
    "AutoencoderConfig",
    "BernoulliDiffusion",
    "BinaryAutoencoder",
    "BinaryLatentDiffusionPipeline",
    "CodeShape",
    "Denoiser",
    "DenoiserConfig",
    "NoiseSchedule",
    "PipelineOutput",
    "UserError",
    "__version__",
    "sample_codes",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bld' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
