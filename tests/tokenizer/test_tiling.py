"""Encoding and decoding in tiles gives what doing it whole gives."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bld.planning.simulate import LiveMemory
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

TOLERANCE = 1e-5  # of the largest value; a pixel level is 400 times that

SHAPES = {
    "plain": {},
    "attention": {"attention_resolutions": (8, 16), "norm_first": True},
    "deep": {"channel_multipliers": (1, 1, 2, 4), "res_blocks": 2, "decoder_res_blocks": 1},
    "flat": {"channel_multipliers": (2,)},
    "real": {"bottleneck": "gaussian"},
    "public": {"out_activation": False, "features_dim": 12},
    "shuffled": {"patch_size": 2, "resampling": "shuffle", "middle": False},
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
    model.tile_rows = rows
    assert difference(model.features(images), features) < TOLERANCE
    assert difference(model.decode(codes), decoded) < TOLERANCE


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 19])
@pytest.mark.parametrize("name, size", [("flat", 25), ("plain", 22), ("attention", 10), ("deep", 40)])
@torch.no_grad()
def test_strips_fit_feature_maps_of_odd_height(name: str, size: int, rows: int):
    model = tokenizer(name, size)
    images = uneven(size)
    features, codes = model.features(images), model.encode(images)
    decoded = model.decode(codes)
    model.tile_rows = rows
    assert difference(model.features(images), features) < TOLERANCE
    assert difference(model.decode(codes), decoded) < TOLERANCE


@torch.no_grad()
def test_strips_as_high_as_the_image_run_the_very_same_operations():
    """In another memory layout convolutions of this width would round differently."""
    torch.manual_seed(0)
    model = BinaryAutoencoder(AutoencoderConfig(32, 16, 64, (1, 2), 1, 0, (), 64)).eval()
    codes = torch.randint(0, 2, (1, *model.code_shape))
    decoded = model.decode(codes)
    model.tile_rows = 32
    assert torch.equal(model.decode(codes), decoded)


@torch.no_grad()
def test_strips_need_about_half_the_memory():
    """Two feature maps of the full resolution and a tile, where doing it whole takes four."""
    peaks = {}
    for rows in (None, 8):
        with FakeTensorMode():
            model = BinaryAutoencoder(AutoencoderConfig(256, 4, 8, (1, 1, 1, 1, 1), 1, 0, (), 8)).eval()
            model.tile_rows = rows
            images, codes = torch.rand(1, 3, 256, 256), torch.zeros(1, *model.code_shape)
            for call, given in ((model.encode, images), (model.decode, codes)):
                with LiveMemory(collect=False) as memory:
                    call(given)
                peaks[call.__name__, rows] = memory.peak
    one_map = 8 * 256 * 256 * 4
    for call in ("encode", "decode"):
        assert peaks[call, 8] < 2.2 * one_map < 0.6 * peaks[call, None]


@torch.no_grad()
def test_strips_with_statistics_of_their_own_would_be_noticed():
    model = tokenizer()
    images = uneven(24)
    codes = model.encode(images)
    model.tile_rows = 8
    exact = model.decode(codes)
    naive = torch.cat([_decode_alone(model, part) for part in codes.split(4, 1)], 2)
    assert difference(naive, exact) > 1000 * TOLERANCE


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest, over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def _decode_alone(model: BinaryAutoencoder, codes: torch.Tensor) -> torch.Tensor:
    latent = model.bottleneck.latent(codes).permute(0, 3, 1, 2)
    return model.decoder(latent)


@torch.no_grad()
def test_strips_in_bfloat16_are_as_near_to_float32_as_doing_it_whole():
    model = tokenizer("deep")
    codes = model.encode(uneven(24))
    exact = model.decode(codes)
    with torch.autocast("cpu", torch.bfloat16):
        whole = model.decode(codes)
        model.tile_rows = 4
        tiled = model.decode(codes)
    assert 0 < float((tiled - exact).abs().mean()) < 1.2 * float((whole - exact).abs().mean())


def test_training_is_not_cut_into_strips():
    model = tokenizer()
    model.tile_rows = 4
    out = model(uneven(24), None).reconstruction
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
