"""The tokenizer: images ⇄ codes of bits (the paper's Section 3 and Appendix B.1), and what it is trained with."""

from bld.tokenizer.bottlenecks.base import Bottleneck
from bld.tokenizer.bottlenecks.bernoulli import straight_through
from bld.tokenizer.config import AutoencoderConfig
from bld.tokenizer.discriminator import PatchDiscriminator
from bld.tokenizer.losses import ObjectiveConfig, ReconstructionLoss, ReconstructionObjective
from bld.tokenizer.model import AutoencoderOutput, BinaryAutoencoder

__all__ = [
    "AutoencoderConfig",
    "AutoencoderOutput",
    "BinaryAutoencoder",
    "Bottleneck",
    "ObjectiveConfig",
    "PatchDiscriminator",
    "ReconstructionLoss",
    "ReconstructionObjective",
    "straight_through",
]
