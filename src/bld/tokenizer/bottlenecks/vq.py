"""The vector-quantised bottleneck: each position takes the nearest of 2^c vectors, and c bits name it (VQ-VAE).

The codebook is vector-quantize-pytorch's: vectors follow the exponential average of what they stand for, and one that
is not used any more starts anew at some vector of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.codes import bits_to_index, index_to_bits
from bld.errors import MissingPackageError, SettingError
from bld.runtime.distributed import any_over_processes
from bld.seeding import derive_seed
from bld.tokenizer.bottlenecks.base import Bottleneck, Bottlenecked, Generators, Options

EMA_DECAY = 0.97
MOST_VQ_BITS = 16
DEAD_BELOW = 0.05  # uses per batch, on average; an untouched vector gets there in 100 batches


class VectorQuantised(Bottleneck):
    """Codes are indices written as bits (B, h, w, code_bits), bit i of weight 2^i; nothing about them is random."""

    kind = "vq"
    is_random = False
    reads_values = True
    passes: Tensor

    @classmethod
    def check(cls, options: Options) -> None:
        """Raise `SettingError` for too many bits: a codebook has 2^c vectors."""
        if options.code_bits > MOST_VQ_BITS:
            raise SettingError(
                f"tokenizer.code_bits is {options.code_bits}, and a vq codebook has 2^code_bits vectors: "
                f"choose at most {MOST_VQ_BITS}, for example 10."
            )

    @classmethod
    def facts(cls, options: Options) -> Iterator[tuple[str, str]]:
        """The size of its codebook."""
        yield "codebook", f"{2**options.code_bits:,} vectors of width {options.embed_dim}"

    @classmethod
    def of(cls, options: Options) -> VectorQuantised:
        """As the settings say."""
        return cls(options.code_bits, options.embed_dim)

    def __init__(self, code_bits: int, width: int):
        super().__init__(width, width)
        with torch.device("cpu"):  # one of its buffers is no part of the state, so "meta" would leave it empty
            self.quantiser: Any = _vector_quantize(width, 2**code_bits)
        self.code_bits = code_bits
        # Counts training passes, from a number of the run's own: what revives dead vectors is drawn from it alone, so
        # that a resumed run goes on as if never stopped.
        self.register_buffer("passes", torch.randint(2**62, (1,)))

    def noise(self, shape: Sequence[int], generators: Generators, device: torch.device) -> None:
        """Nothing is drawn."""
        return

    def codes(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Bits of the index of the nearest vector, uint8."""
        return index_to_bits(self._quantise(features)[1], self.code_bits)

    def latent(self, codes: Tensor) -> Tensor:
        """The vectors that bits of any dtype name."""
        return self.quantiser.get_codes_from_indices(bits_to_index(codes)).float()

    def forward(self, features: Tensor, noise: Tensor | None = None, **_: Tensor | None) -> Bottlenecked:
        """Vectors with the features' gradient; in training mode the codebook learns too.

        The commitment is the mean squared distance of the features from their vectors.
        """
        latent, index = self._quantise(features)
        commitment = F.mse_loss(features, latent.detach())
        return Bottlenecked(latent, index_to_bits(index, self.code_bits), None, {"commitment": commitment})

    def metrics(self, codes: Tensor) -> dict[str, Tensor]:
        """Perplexity: how many vectors, equally used, would be as diverse as those of the batch."""
        return {"perplexity": perplexity(bits_to_index(codes), 2**self.code_bits)}

    def _quantise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors, indices), in float32 also under autocast: in half precision another vector may seem the nearest."""
        h, w = features.shape[1:3]
        device = features.device
        forked = [] if device.type == "cpu" else [device]
        with (
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng(forked, enabled=self.training, device_type=_rng_type(device)),
        ):
            if self.training:
                torch.manual_seed(derive_seed(int(self.passes), "codebook"))
                self.passes += 1
            # A pass that is not finite is skipped by the optimizer, and must not reach the average either; on any
            # process, as all learn one codebook together.
            frozen = self.training and any_over_processes(~features.isfinite().all())
            latent, index, _ = self.quantiser(features.float().flatten(1, 2), freeze_codebook=frozen)
        return latent.unflatten(1, (h, w)), index.unflatten(1, (h, w))


def perplexity(index: Tensor, size: int) -> Tensor:
    """Exponential of the entropy of indices of any shape, below `size`: 1 if all are equal, at most `size`."""
    shares = torch.bincount(index.flatten(), minlength=size) / index.numel()
    return torch.special.entr(shares).sum().exp()


def _rng_type(device: torch.device) -> str:
    """The accelerator whose generators `fork_rng` also keeps; with no device of it forked, any name will do."""
    return "cuda" if device.type == "cpu" else device.type


def _vector_quantize(width: int, size: int) -> nn.Module:
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise MissingPackageError(
            "A vq tokenizer needs vector-quantize-pytorch: pip install 'binary-latent-diffusion[vq]', "
            "or set tokenizer.bottleneck=bernoulli."
        ) from error
    return VectorQuantize(
        width,
        size,
        decay=EMA_DECAY,
        threshold_ema_dead_code=DEAD_BELOW,
        commitment_weight=0.0,  # the objective weighs it
        rotation_trick=False,  # straight through, as the paper's baseline
    )
