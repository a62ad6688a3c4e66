from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from bld.errors import SettingError
from bld.seeding import keyed_draws, keyed_generator
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder, straight_through
from bld.tokenizer.layers import AttentionBlock, Conv2d

SMALL = {"base_channels": 8, "res_blocks": 1, "embed_dim": 8, "attention_resolutions": ()}


def build(seed: int = 0, **settings: object) -> BinaryAutoencoder:
    torch.manual_seed(seed)
    model = BinaryAutoencoder(AutoencoderConfig(**{**SMALL, **settings})).eval()
    nn.init.normal_(model.encoder.to_logits.weight, std=1.0)  # probabilities away from ½
    return model


def pictures(count: int, size: int, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def model() -> BinaryAutoencoder:
    return build(image_size=16, code_bits=6, channel_multipliers=(1, 2, 2))


@pytest.mark.parametrize("factor, size", [(2, 8), (4, 16), (8, 24), (32, 64)])
@pytest.mark.parametrize("channels, norm_first", [(3, False), (1, True)])
def test_images_become_bits_and_bits_images(factor: int, size: int, channels: int, norm_first: bool):
    multipliers = (1,) * factor.bit_length()
    model = build(
        image_size=size,
        code_bits=5,
        channel_multipliers=multipliers,
        in_channels=channels,
        norm_first=norm_first,
        decoder_res_blocks=2,
    )
    side = size // factor
    assert model.config.factor == factor and model.code_shape == (side, side, 5)
    images = pictures(2, size, channels)
    probs = model.encode_probs(images)
    assert probs.shape == (2, side, side, 5) and probs.dtype == torch.float32
    assert ((probs > 0) & (probs < 1)).all()
    bits = model.encode(images)
    assert bits.dtype == torch.uint8 and torch.equal(bits, (probs > 0.5).to(torch.uint8))
    for given in (bits, bits.float(), bits.bool()):
        decoded = model.decode(given)
        assert decoded.shape == images.shape and decoded.dtype == torch.float32


@pytest.mark.parametrize("resampling", ["convolution", "shuffle"])
@pytest.mark.parametrize(
    "patch, multipliers, size", [(2, (1, 2), 16), (4, (2,), 24), (1, (1, 2, 2), 16), (2, (1, 2, 4), 24)]
)
def test_a_tokenizer_of_patches_works_below_full_resolution(
    resampling: str, patch: int, multipliers: tuple[int, ...], size: int
):
    model = build(
        image_size=size, code_bits=5, patch_size=patch, channel_multipliers=multipliers, resampling=resampling,
        middle=False,
    )  # fmt: skip
    seen: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[-1]))
    bits = model.encode(pictures(2, size))
    side = size // (patch * 2 ** (len(multipliers) - 1))
    assert bits.shape == (2, side, side, 5) and model.decode(bits).shape == (2, 3, size, size)
    assert max(seen) in (size // patch, size // patch + 1) and min(seen) == side  # padded before strides
    assert not any("middle" in name for name in model.state_dict())


def test_the_patches_of_an_image_are_its_squares_of_pixels():
    """Where the first convolution is the identity, position (i, j) has the pixels of square (i, j), and back."""
    model = build(image_size=4, patch_size=2, channel_multipliers=(1,), middle=False)
    image = torch.arange(48.0).view(1, 3, 4, 4)
    patches = model.encoder.patches(image)
    assert patches.shape == (1, 12, 2, 2)
    assert set(patches[0, :, 1, 0].tolist()) == set(image[0, :, 2:4, 0:2].flatten().tolist())
    assert torch.equal(model.decoder.patches(patches), image)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.2, 0.01])
def test_bit_noise_scales_the_logistic_noise_that_bits_are_drawn_with(eta: float):
    """A bit is 1 where logit + η·logistic noise > 0, which is P(bit = 1) = σ(logit/η)."""
    model = build(image_size=8, code_bits=4, channel_multipliers=(1, 1), bit_noise=eta)
    images = pictures(3, 8)
    noise = model.draw_noise(3, keyed_draws(0, "n", range(3)))
    logits = model.features(images)
    probs = model.encode_probs(images)
    torch.testing.assert_close(probs, (logits / eta).sigmoid(), rtol=0, atol=1e-7)
    by_logistic = logits + eta * (torch.log1p(-noise) - noise.log()) > 0
    with torch.no_grad():
        bits = model(images, noise).bits
    assert torch.equal(bits.bool(), by_logistic)
    assert torch.equal(model.encode(images, keyed_draws(0, "n", range(3))), bits)
    assert torch.equal(model.encode(images), (logits > 0).to(torch.uint8))


def test_a_small_bit_noise_leaves_the_encoder_its_gradient():
    """Of σ(logit), whatever η: that of σ(logit/η) vanishes for nearly all bits."""
    gradients = []
    for eta in (1.0, 0.001):
        model = build(image_size=8, code_bits=4, channel_multipliers=(1, 1), bit_noise=eta)
        logits = torch.randn(2, 4, 4, 4, generator=keyed_generator(0, "l")).requires_grad_()
        out = model.bottleneck(logits, torch.full((2, 4, 4, 4), 0.5))
        (out.latent * torch.arange(1.0, 129).view(2, 4, 4, 4)).sum().backward()
        gradients.append(logits.grad)
    assert torch.equal(*gradients) and gradients[0].abs().min() > 0


def test_flips_turn_bits_over_for_the_decoder_alone(model: BinaryAutoencoder):
    images, flips = pictures(2, 16), torch.zeros(2, 4, 4, 6, dtype=torch.bool)
    flips[0, 1, 2, 3] = flips[1, 3, 0, 5] = True
    with torch.no_grad():
        plain, flipped = model(images), model(images, flips=flips)
    assert torch.equal(flipped.bits, plain.bits)
    torch.testing.assert_close(flipped.reconstruction, model.decode(plain.bits ^ flips.byte()), rtol=0, atol=1e-5)


def test_the_defaults_are_the_papers_kibibyte():
    shape = AutoencoderConfig().code_shape
    assert shape == (16, 16, 32) and shape.packed_bytes == 1024


def test_the_downsampling_of_the_big_images_is_one_more_stage():
    config = AutoencoderConfig(image_size=1024, channel_multipliers=(1, 1, 2, 2, 4, 4), code_bits=64)
    assert config.factor == 32 and config.code_shape == (32, 32, 64)


@pytest.mark.parametrize("asked", [(), (16,), (8, 4), (16, 8, 4)])
def test_attention_follows_residual_blocks_where_asked(asked: tuple[int, ...]):
    model = build(image_size=16, channel_multipliers=(1, 1, 1), res_blocks=2, attention_resolutions=asked)
    sizes: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for name, module in model.named_modules():
        if isinstance(module, AttentionBlock) and "middle" not in name:
            module.register_forward_hook(lambda _, x, __, n=name: sizes[n.split(".")[0]].append(x[0].shape[-1]))
    model.decode(model.encode(pictures(1, 16)))
    twice = [size for size in asked for _ in range(2)]
    assert sorted(sizes["encoder"]) == sorted(sizes["decoder"]) == sorted(twice)


def test_straight_through_has_the_value_of_the_bits_and_the_gradient_of_the_probabilities():
    probs = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bits = probs.detach() > 0.3
    weights = torch.arange(12, dtype=torch.float64).view(3, 4)
    passed = straight_through(bits, probs)
    torch.testing.assert_close(passed, bits.double(), rtol=0, atol=1e-15)
    (passed * weights).sum().backward()
    assert torch.equal(probs.grad, weights)


def test_training_draws_bits_with_the_noise_given_and_reaches_the_encoder(model: BinaryAutoencoder):
    images = pictures(2, 16)
    noise = torch.rand(2, 4, 4, 6, generator=keyed_generator(0, "noise"))
    output = model(images, noise)
    assert torch.equal(output.bits, (output.probs > noise).to(torch.uint8))
    torch.testing.assert_close(output.reconstruction, model.decode(output.bits), rtol=0, atol=1e-4)
    assert torch.equal(model(images).bits, model.encode(images))
    gradient = torch.autograd.grad(output.reconstruction.square().mean(), model.encoder.conv_in.weight)[0]
    assert gradient.abs().sum() > 0


def test_drawn_bits_follow_the_probabilities(model: BinaryAutoencoder):
    image, count = pictures(1, 16), 2000
    probs = model.encode_probs(image)[0]
    drawn = model.encode(image.expand(count, -1, -1, -1), keyed_draws(0, "bits", range(count)))
    bound = 5.5 * (probs * (1 - probs) / count).sqrt() + 1e-3
    # 5.5 standard deviations for 96 bits: false alarm below 4e-6; 1e-3 for probabilities near 0 and 1.
    assert ((drawn.double().mean(0) - probs).abs() < bound).all()


def test_drawn_bits_depend_on_the_images_own_generator_only(model: BinaryAutoencoder):
    images = pictures(6, 16)
    together = model.encode(images, keyed_draws(3, "encode", range(6)))
    alone = [model.encode(images[i : i + 1], keyed_draws(3, "encode", [i])) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, model.encode(images))


def test_reconstructions_do_not_depend_on_the_batch(model: BinaryAutoencoder):
    images = pictures(5, 16)
    together = model(images).reconstruction
    alone = torch.cat([model(images[i : i + 1]).reconstruction for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel, channels", [(1, 256), (3, 64)])
@torch.no_grad()
def test_a_convolution_gives_an_image_the_same_numbers_in_a_batch_of_any_size(kernel: int, channels: int, threads: int):
    """Which kernels PyTorch takes depends on both."""
    torch.manual_seed(0)
    conv, images = Conv2d(channels, 32, kernel, padding=kernel // 2), torch.randn(33, channels, 4, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = conv(images)
        for size in (1, 2, 15, 16, 32):
            assert torch.equal(torch.cat([conv(part) for part in images.split(size)]), whole), size
    finally:
        torch.set_num_threads(before)


def test_a_half_precision_tokenizer_still_gives_float32():
    model = build(image_size=8, code_bits=4, channel_multipliers=(1, 1)).bfloat16()
    images = pictures(1, 8)
    assert model.encode_probs(images).dtype == torch.float32
    assert model.decode(model.encode(images)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 16, 15), (2, 1, 16, 16), (3, 16, 16), (2, 3, 32, 32)])
def test_images_of_another_shape_are_refused(model: BinaryAutoencoder, shape: tuple[int, ...]):
    with pytest.raises(SettingError, match=rf"\(B, 3, 16, 16\), not {re.escape(str(shape))}"):
        model.encode_probs(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 16, 6), (2, 6, 4, 4), (4, 4, 6)])
def test_codes_of_another_shape_are_refused(model: BinaryAutoencoder, shape: tuple[int, ...]):
    with pytest.raises(SettingError, match=r"4×4×6\), not"):
        model.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 250}, r"\b250 .*factor 16\b.* 256\b"),
        ({"image_size": 8}, r"\b8 .*factor 16\b.*: \w+ 16\b"),
        ({"image_size": 0}, r"tokenizer\.image_size is 0\b.*\b1 to 65536"),
        ({"code_bits": 0}, "tokenizer.code_bits is 0"),
        ({"base_channels": -1}, "tokenizer.base_channels is -1"),
        ({"res_blocks": 0}, "tokenizer.res_blocks is 0"),
        ({"patch_size": 0}, "tokenizer.patch_size is 0"),
        (
            {"image_size": 36, "patch_size": 3, "channel_multipliers": (1, 1, 2, 4)},
            r"\b36 .*factor 24\b.*patch_size of 3\b",
        ),
        ({"resampling": "shufle"}, r"tokenizer\.resampling 'shufle'.*'shuffle'\?"),
        ({"bit_noise": 0}, r"tokenizer\.bit_noise .*is 0\b.*above 0"),
        ({"bit_noise": 1.5}, r"tokenizer\.bit_noise .*is 1\.5\b"),
        ({"decoder_res_blocks": -1}, r"tokenizer\.decoder_res_blocks is -1\b.* 0 .*to 100\b"),
        ({"embed_dim": 0}, "tokenizer.embed_dim is 0"),
        ({"channel_multipliers": ()}, "channel_multipliers.* is 0"),
        ({"channel_multipliers": (1, 0, 2)}, "channel_multipliers.* is 0"),
    ],
)
def test_an_impossible_tokenizer_is_refused_with_its_value_and_a_cure(settings: dict, message: str):
    with pytest.raises(SettingError, match=message):
        AutoencoderConfig(**settings)


def test_lists_from_a_config_file_become_tuples():
    config = AutoencoderConfig(image_size=32, channel_multipliers=[1, 2], attention_resolutions=[16])
    same = AutoencoderConfig(image_size=32, channel_multipliers=(1, 2), attention_resolutions=(16,))
    assert len({config, same}) == 1
