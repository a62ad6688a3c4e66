"""What a tokenizer looks like: the settings' section `tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from bld.codes import CodeShape
from bld.errors import SettingError, did_you_mean
from bld.tokenizer.bottlenecks import Bottleneck, kinds

Resampling = Literal["convolution", "shuffle"]


# Far beyond use, so that a damaged or hostile config is refused before anything is allocated.
MOST_WIDTH = 65_536
MOST = {"res_blocks": 100, "len(channel_multipliers)": 16, "patch_size": 64}


@dataclass(frozen=True)
class AutoencoderConfig:
    """What a tokenizer looks like; the defaults are the paper's at 256×256: 16×16×32 bits, 1 KiB.

    Args:
        image_size: height and width of an image, in pixels; a multiple of the downsampling factor
        code_bits: c, bits per latent position; of a gaussian bottleneck the real numbers per position
        base_channels: width of the first resolution
        channel_multipliers: width of each resolution over base_channels; n of them downsample by 2^(n-1)
        res_blocks: residual blocks per resolution of the encoder
        decoder_res_blocks: the same for the decoder; 0 means as in the encoder
        attention_resolutions: feature-map sizes, in pixels, at which residual blocks are followed by attention
        embed_dim: width to which the decoder embeds the c bits of a position; also that of vq's codebook vectors
        norm_first: whether the decoder normalises that embedding
        in_channels: colour channels of an image; 3 in a run, which reads all images as RGB
        features_dim: width of the encoder's last features, which a 1×1 convolution makes logits of; 0 means that of
            the last resolution
        out_activation: whether SiLU stands between the last norm and the last 3×3 convolution of encoder and decoder;
            the paper's public code has none
        bottleneck: bernoulli (the paper's bits), or what it is compared with: vq (the nearest of 2^code_bits vectors,
            its index written as bits) or gaussian (real numbers)
        bit_noise: η above 0, at most 1 (the paper's): a bernoulli tokenizer draws bits with probability σ(logit/η), in
            training too, so that a small one makes them decisive
        patch_size: side of the squares of pixels that the first convolution takes as one position each, and the last
            one gives, so that no layer works at full resolution; 1, as in the paper, is single pixels
        resampling: convolution (the paper's: of stride 2, and after nearest-neighbour doubling) or shuffle (a square of
            four positions becomes one, and back, by 1×1 convolutions), which is cheaper
        middle: whether residual, attention, residual stand at the lowest resolution, as in the paper
        bits_per_value: of a bernoulli bottleneck: 1 gives each bit a logit of its own, as in the paper; k, a divisor of
            code_bits of at most 8, rounds code_bits/k numbers to 2^k levels each and writes them in Gray code
    """

    image_size: int = 256
    code_bits: int = 32
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    decoder_res_blocks: int = 0
    attention_resolutions: tuple[int, ...] = (16,)
    embed_dim: int = 256
    norm_first: bool = False
    in_channels: int = 3
    features_dim: int = 0
    out_activation: bool = True
    bottleneck: str = "bernoulli"
    bit_noise: float = 1.0
    patch_size: int = 1
    resampling: Resampling = "convolution"
    middle: bool = True
    bits_per_value: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        sizes = {
            "image_size": self.image_size,
            "code_bits": self.code_bits,
            "base_channels": self.base_channels,
            "patch_size": self.patch_size,
            "res_blocks": self.res_blocks,
            "embed_dim": self.embed_dim,
            "in_channels": self.in_channels,
            "len(channel_multipliers)": len(self.channel_multipliers),
            "min(channel_multipliers)": min(self.channel_multipliers, default=0),
        }
        for name, value in sizes.items():
            if not 1 <= value <= MOST.get(name, MOST_WIDTH):
                raise SettingError(f"tokenizer.{name} is {value}, but must be 1 to {MOST.get(name, MOST_WIDTH)}.")
        if not 0 <= self.decoder_res_blocks <= MOST["res_blocks"]:
            raise SettingError(
                f"tokenizer.decoder_res_blocks is {self.decoder_res_blocks}, but must be 0 (as the encoder) to "
                f"{MOST['res_blocks']}."
            )
        if not 0 <= self.features_dim <= MOST_WIDTH:
            raise SettingError(
                f"tokenizer.features_dim is {self.features_dim}, but must be 0 (as the last resolution) "
                f"to {MOST_WIDTH}."
            )
        for name, known in (("bottleneck", tuple(kinds())), ("resampling", get_args(Resampling))):
            chosen = getattr(self, name)
            if chosen not in known:
                raise SettingError(f"Unknown tokenizer.{name} '{chosen}'.{did_you_mean(str(chosen), known)}")
        if not 0 < self.bit_noise <= 1:
            raise SettingError(
                f"tokenizer.bit_noise (η) is {self.bit_noise}, but must be above 0, at most 1 (the paper's)."
            )
        self.bottleneck_class.check(self)
        if self.image_size % self.factor:
            near = max(1, round(self.image_size / self.factor)) * self.factor
            raise SettingError(
                f"An image size of {self.image_size} is not divisible by the downsampling factor {self.factor} of "
                f"{len(self.channel_multipliers)} channel_multipliers"
                f"{f' and a patch_size of {self.patch_size}' if self.patch_size > 1 else ''}: choose {near}, or other "
                "multipliers."
            )

    @property
    def factor(self) -> int:
        """The downsampling factor: pixels per latent position and side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def code_shape(self) -> CodeShape:
        """(h, w, c)."""
        side = self.image_size // self.factor
        return CodeShape(side, side, self.code_bits)

    @property
    def bottleneck_class(self) -> type[Bottleneck]:
        """What `bottleneck` names."""
        return kinds()[self.bottleneck]

    @property
    def code_bytes(self) -> int:
        """Bytes of one stored code: packed bits, or float16 numbers."""
        return self.code_shape.packed_bytes if self.bottleneck_class.is_binary else 2 * self.code_shape.bits

    def images_at_a_time(self, wanted: int) -> int:
        """How many images to encode or decode at once without training: `wanted` at 256×256, fewer of larger ones."""
        return max(1, min(wanted, wanted * 256**2 // self.image_size**2))
