"""The tokenizer: images ⇄ codes of bits (the paper's Section 3 and Appendix B.1), and what it is trained with."""

from bld.autoencoder.autoencoder import AutoencoderConfig, AutoencoderOutput, BinaryAutoencoder
from bld.autoencoder.bottleneck import Bottleneck, straight_through
from bld.autoencoder.discriminator import PatchDiscriminator
from bld.autoencoder.objective import ObjectiveConfig, ReconstructionLoss, ReconstructionObjective

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
