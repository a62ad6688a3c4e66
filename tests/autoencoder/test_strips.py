"""Encoding and decoding in strips gives what doing it whole gives."""

from __future__ import annotations

import pytest
import torch

from bld.autoencoder import AutoencoderConfig, BinaryAutoencoder

SHAPES = {
    "plain": {},
    "attention": {"attention_resolutions": (8, 16), "norm_first": True},
    "deep": {"channel_multipliers": (1, 1, 2, 4), "res_blocks": 2, "decoder_res_blocks": 1},
    "flat": {"channel_multipliers": (2,)},
    "real": {"bottleneck": "gaussian"},
}


def tokenizer(name: str = "plain", size: int = 24) -> BinaryAutoencoder:
    torch.manual_seed(0)
    options = {"channel_multipliers": (1, 2), "attention_resolutions": (), "res_blocks": 1, **SHAPES[name]}
    config = AutoencoderConfig(image_size=size, code_bits=4, base_channels=8, embed_dim=8, **options)
    model = BinaryAutoencoder(config).eval()
    for parameter in model.parameters():  # biases and norms too are something else than zero and one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def uneven(size: int) -> torch.Tensor:
    """Images whose statistics differ very much between top and bottom."""
    slope = torch.linspace(-1, 1, size)[:, None]
    return (slope + slope.abs() * torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))).clamp(
        -1, 1
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 23, 24, 100])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_strips_of_any_height_change_nothing(name: str, rows: int):
    model = tokenizer(name)
    images = uneven(24)
    features, codes = model.features(images), model.encode(images)
    decoded = model.decode(codes)
    model.strip_rows = rows
    assert torch.allclose(model.features(images), features, atol=2e-5 * float(features.abs().max()))
    assert torch.allclose(model.decode(codes), decoded, atol=2e-5 * float(decoded.abs().max()))


@torch.no_grad()
def test_strips_with_statistics_of_their_own_would_be_noticed():
    model = tokenizer()
    images = uneven(24)
    codes = model.encode(images)
    model.strip_rows = 8
    exact = model.decode(codes)
    naive = torch.cat([_decode_alone(model, part) for part in codes.split(4, 1)], 2)
    assert float((naive - exact).abs().max()) > 100 * 2e-5 * float(exact.abs().max())


def _decode_alone(model: BinaryAutoencoder, codes: torch.Tensor) -> torch.Tensor:
    latent = model.bottleneck.latent(codes).permute(0, 3, 1, 2)
    return model.decoder(latent)


@torch.no_grad()
def test_strips_in_bfloat16_stay_within_two_levels_of_255():
    model = tokenizer("deep")
    codes = model.encode(uneven(24))
    with torch.autocast("cpu", torch.bfloat16):
        whole = model.decode(codes)
        model.strip_rows = 4
        strips = model.decode(codes)
    assert float((whole - strips).abs().mean()) < 2 * 2 / 255


def test_training_is_not_cut_into_strips():
    model = tokenizer()
    model.strip_rows = 4
    out = model(uneven(24), None).reconstruction
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
