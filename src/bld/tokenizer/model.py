"""The binary autoencoder: encoder Ψ, bottleneck, decoder Φ (Section 3, Figure 2, Appendix B.1).

The bottleneck is Bernoulli, the paper's; the two it is compared with in Table 4 stand in the same place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bld.codes import CodeShape
from bld.errors import SettingError
from bld.tokenizer.bottlenecks import Bottleneck, Generators
from bld.tokenizer.config import AutoencoderConfig
from bld.tokenizer.layers import (
    DOWN,
    UP,
    Conv2d,
    OutConv,
    group_norm,
    middle,
    preferred_layout,
    stage,
)
from bld.tokenizer.tiling import decode_tiled, encode_tiled


class Encoder(nn.Module):
    """Ψ: images (B, 3, H, W) → features (B, C, h, w): the logits of c bits, or what another bottleneck takes.

    It holds the bottleneck, because codes depend on a codebook as they do on the weights.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.patches = nn.PixelUnshuffle(config.patch_size) if config.patch_size > 1 else nn.Identity()
        self.conv_in = Conv2d(config.in_channels * config.patch_size**2, config.base_channels, 3, padding=1)
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        width, size = config.base_channels, config.image_size // config.patch_size
        for level, next_width in enumerate(widths):
            self.stages.append(stage(width, next_width, config.res_blocks, size in config.attention_resolutions))
            width = next_width
            if level < len(widths) - 1:
                after = widths[level + 1] if config.resampling == "shuffle" else width
                self.downs.append(DOWN[config.resampling](width, after))
                width, size = after, size // 2
        self.middle = middle(width) if config.middle else nn.Sequential()
        features = config.features_dim or width
        self.out = OutConv(width, features, config.out_activation)
        self.bottleneck = config.bottleneck_class.of(config)
        self.to_logits = Conv2d(features, self.bottleneck.feature_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w)."""
        x = self.conv_in(preferred_layout(self.patches(images)))
        for level, blocks in enumerate(self.stages):
            x = blocks(x)
            if level < len(self.downs):
                x = self.downs[level](x)
        return self.to_logits(self.out(self.middle(x)))


class Decoder(nn.Module):
    """Φ: what the bottleneck makes of codes (B, C, h, w), for bits -1 and 1, → images (B, 3, H, W), near [-1, 1]."""

    def __init__(self, config: AutoencoderConfig, latent_channels: int):
        super().__init__()
        widths = [config.base_channels * m for m in reversed(config.channel_multipliers)]
        blocks = config.decoder_res_blocks or config.res_blocks
        self.embed = Conv2d(latent_channels, config.embed_dim, 1)
        self.norm_in = group_norm(config.embed_dim) if config.norm_first else nn.Identity()
        self.conv_in = Conv2d(config.embed_dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0]) if config.middle else nn.Sequential()
        self.stages = nn.ModuleList()
        self.ups = nn.ModuleList()
        width, size = widths[0], config.code_shape.h
        for level, next_width in enumerate(widths):
            self.stages.append(stage(width, next_width, blocks, size in config.attention_resolutions))
            width = next_width
            if level < len(widths) - 1:
                after = widths[level + 1] if config.resampling == "shuffle" else width
                self.ups.append(UP[config.resampling](width, after))
                width, size = after, size * 2
        self.out = OutConv(width, config.in_channels * config.patch_size**2, config.out_activation)
        self.patches = nn.PixelShuffle(config.patch_size) if config.patch_size > 1 else nn.Identity()

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) → (B, 3, H, W)."""
        x = self.embed(preferred_layout(latent))
        x = self.middle(self.conv_in(self.norm_in(x)))
        for level, blocks in enumerate(self.stages):
            x = blocks(x)
            if level < len(self.ups):
                x = self.ups[level](x)
        return self.patches(self.out(x))

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight against which gradients are compared for the adaptive adversarial weight."""
        return self.out.conv.weight  # type: ignore[return-value]


class AutoencoderOutput(NamedTuple):
    """What `BinaryAutoencoder.forward` returns.

    Attributes:
        reconstruction: images (B, 3, H, W), float32.
        probs: P(bit = 1), (B, h, w, c) float32; None unless the bottleneck is Bernoulli.
        bits: codes (B, h, w, c), uint8; float32 for a Gaussian bottleneck.
        penalties: unweighted scalar losses by name: "commitment" for vq, "kl" for gaussian.
    """

    reconstruction: Tensor
    probs: Tensor | None
    bits: Tensor
    penalties: dict[str, Tensor] = {}  # noqa: RUF012 (never written to)


class BinaryAutoencoder(nn.Module):
    """The tokenizer (Section 3, Figure 2): images (B, 3, H, W) in [-1, 1] ⇄ codes (B, h, w, c).

    Codes are bits, uint8; float32 for a Gaussian bottleneck.

    Args:
        config: sizes and bottleneck.

    Attributes:
        encoder: Ψ, images → features (B, C, h, w).
        decoder: Φ, what the bottleneck makes of codes → images.
        tile_rows: feature-map rows per tile without gradients, which needs less memory and gives the same; None, the
            default, computes whole images.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.tile_rows: int | None = None
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.bottleneck.latent_channels)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Run torch.compile's version of encoder and decoder from now on; the arguments are torch.compile's."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    @property
    def bottleneck(self) -> Bottleneck:
        """Between encoder and decoder; it belongs to the encoder."""
        return self.encoder.bottleneck

    @property
    def code_shape(self) -> CodeShape:
        """(h, w, c)."""
        return self.config.code_shape

    @property
    def is_binary(self) -> bool:
        """Whether codes are bits (bernoulli, vq), else real numbers (gaussian)."""
        return self.bottleneck.is_binary

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.last_layer.device

    def features(self, images: Tensor) -> Tensor:
        """Ψ(x): images (B, 3, H, W) in [-1, 1] → what the bottleneck makes codes of, (B, h, w, C) float32.

        Raises:
            SettingError: for images of another shape.
        """
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (self.config.in_channels, size, size):
            raise SettingError(
                f"This tokenizer takes images of shape (B, {self.config.in_channels}, {size}, {size}), "
                f"not {tuple(images.shape)}: resize or crop them first."
            )
        images = images.to(self.decoder.last_layer.dtype)
        rows = self._rows()
        features = self.encoder(images) if rows is None else encode_tiled(self.encoder, images, rows)
        return features.float().permute(0, 2, 3, 1)

    def encode_probs(self, images: Tensor) -> Tensor:
        """y = σ(Ψ(x)/η): images (B, 3, H, W) in [-1, 1] → P(bit = 1), (B, h, w, c) float32 in (0, 1).

        Raises:
            SettingError: if the bottleneck is not Bernoulli, or for images of another shape.
        """
        return self.bottleneck.probs(self.features(images))

    def draw_noise(self, images: int, generator: Generators) -> Tensor | None:
        """What `forward` draws codes with, (B, h, w, c) on the weights' device; None for vq, which draws nothing.

        Args:
            images: B, how many.
            generator: one for the batch, or one per image.
        """
        return self.bottleneck.noise((images, *self.code_shape), generator, self.device)

    @torch.no_grad()
    def encode(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Images → codes.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            generator: one for the batch, or one per image: codes are drawn; without one they are the most probable.

        Returns:
            Codes (B, h, w, c), uint8 bits drawn from the probabilities or thresholded at ½. A Gaussian bottleneck
                gives draws or means, float32; vq gives the indices of its vectors as bits, which are never drawn.

        Raises:
            SettingError: for images of another shape.
        """
        noise = None if generator is None else self.draw_noise(len(images), generator)
        return self.bottleneck.codes(self.features(images), noise)

    def decode(self, bits: Tensor) -> Tensor:
        """x̂ = Φ(z): codes (B, h, w, c) of any dtype, bits in {0, 1}, → images (B, 3, H, W), near [-1, 1], float32.

        Raises:
            SettingError: for codes of another shape.
        """
        if bits.ndim != 4 or bits.shape[1:] != self.code_shape:
            raise SettingError(f"This tokenizer decodes codes (B, {self.code_shape}), not {tuple(bits.shape)}.")
        return self._decode(self.bottleneck.latent(bits))

    def _decode(self, latent: Tensor) -> Tensor:
        latent = latent.to(self.decoder.last_layer.dtype).permute(0, 3, 1, 2)
        rows = self._rows()
        return (self.decoder(latent) if rows is None else decode_tiled(self.decoder, latent, rows)).float()

    def _rows(self) -> int | None:
        """Rows at a time; tiles write in place, so where gradients are wanted everything runs whole."""
        return None if torch.is_grad_enabled() else self.tile_rows

    def forward(self, images: Tensor, noise: Tensor | None = None, *, flips: Tensor | None = None) -> AutoencoderOutput:
        """Encode, draw codes, decode; differentiable, through bits by the straight-through gradient of eq. (1).

        In training mode the codebook of a vq bottleneck is updated from the batch.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            noise: (B, h, w, c) from `draw_noise`, uniform in [0, 1) for bits, standard normal for a Gaussian
                bottleneck; None takes the most probable codes.
            flips: bool (B, h, w, c), True for bits to flip before decoding (Bernoulli only).
        """
        out = self.bottleneck(self.features(images), noise, flips=flips)
        return AutoencoderOutput(self._decode(out.latent), out.probs, out.codes, out.penalties)
