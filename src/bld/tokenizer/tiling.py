"""Encoder and decoder in horizontal tiles, for images whose feature maps do not fit into memory: the same result.

Cutting an image into tiles would change it, since GroupNorm looks at all of a feature map.  So each layer is cut
instead: the statistics of a norm are taken over the whole map first, then its convolution runs tile by tile, each
with the rows above and below that it sees.  About two maps and one tile's temporaries are alive at a time, in place
of four maps.  Attention stands at low resolutions only and runs whole, as do the layers of the resampling "shuffle".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.tokenizer.layers import (
    Downsample,
    OutConv,
    ResidualBlock,
    Upsample,
    preferred_format,
    preferred_layout,
)

Normalise = Callable[[Tensor], Tensor]


def encode_tiled(encoder: Any, images: Tensor, rows: int) -> Tensor:
    """What the encoder gives for images (B, 3, H, W), taking `rows` rows of a feature map at a time; no gradients."""
    x = _convolved(preferred_layout(encoder.patches(images)), encoder.conv_in, rows)
    for layer in [*_levels(encoder.stages, encoder.downs), *encoder.middle, encoder.out]:
        x = _layer(layer, x, rows)
    return encoder.to_logits(x)


def decode_tiled(decoder: Any, latent: Tensor, rows: int) -> Tensor:
    """What the decoder gives for a latent (B, C, h, w), taking `rows` rows of a feature map at a time; no gradients."""
    x = decoder.conv_in(decoder.norm_in(decoder.embed(preferred_layout(latent))))
    for layer in [*decoder.middle, *_levels(decoder.stages, decoder.ups), decoder.out]:
        x = _layer(layer, x, rows)
    return decoder.patches(x)


def _levels(stages: nn.ModuleList, between: nn.ModuleList) -> Iterator[nn.Module]:
    """The blocks of each resolution, and what leads from one to the next."""
    for level, blocks in enumerate(stages):
        yield from blocks.children()
        if level < len(between):
            yield between[level]


def _layer(layer: nn.Module, x: Tensor, rows: int) -> Tensor:
    """One layer in tiles, or whole where its map has few rows; x may be overwritten."""
    tiled = TILED.get(type(layer))
    if tiled is None or x.shape[2] * (1 + isinstance(layer, Upsample)) <= rows:
        return layer(x)
    return tiled(layer, x, rows)


def _residual(block: ResidualBlock, x: Tensor, rows: int) -> Tensor:
    """A residual block; x itself receives the result where the widths are equal."""
    y = _convolved(x, block.conv1, rows, _normalised(block.norm1, x, rows))
    normalise = _normalised(block.norm2, y, rows)
    total = x if isinstance(block.skip, nn.Identity) else None
    for start, stop in _tiles(x.shape[2], rows):
        tile = _convolution(block.conv2, _with_halo(y, start, stop, normalise)) + block.skip(x[:, :, start:stop])
        total = _placed(tile, total, start, x.shape[2])
    assert total is not None
    return total


def _out(out: OutConv, x: Tensor, rows: int) -> Tensor:
    return _convolved(x, out.conv, rows, _normalised(out.norm, x, rows, out.activation))


def _upsampled(up: Upsample, x: Tensor, rows: int) -> Tensor:
    """A tile of the doubled map is convolved from the rows of x it comes from."""
    height = 2 * x.shape[2]
    result = None
    for start, stop in _tiles(height, rows):
        first, last = max(0, start - 1), min(height, stop + 1)
        doubled = F.interpolate(x[:, :, first // 2 : (last + 1) // 2], scale_factor=2.0, mode="nearest")
        doubled = doubled[:, :, first - first // 2 * 2 :][:, :, : last - first]
        tile = _convolution(up.conv, F.pad(doubled, (0, 0, first - (start - 1), stop + 1 - last)))
        result = _placed(tile, result, start, height)
    assert result is not None
    return result


def _downsampled(down: Downsample, x: Tensor, rows: int) -> Tensor:
    """Row i of the halved map sees rows 2i to 2i + 2 of x, of which the last may lie below its end."""
    result, height = None, x.shape[2] // 2
    for start, stop in _tiles(height, max(1, rows // 2)):
        seen = x[:, :, 2 * start : 2 * stop + 1]
        result = _placed(
            down.conv(F.pad(seen, (0, 1, 0, 2 * (stop - start) + 1 - seen.shape[2]))), result, start, height
        )
    assert result is not None
    return result


TILED: dict[type, Callable[..., Tensor]] = {
    ResidualBlock: _residual,
    OutConv: _out,
    Upsample: _upsampled,
    Downsample: _downsampled,
}


def _convolved(x: Tensor, conv: nn.Conv2d, rows: int, normalise: Normalise | None = None) -> Tensor:
    """A 3×3 convolution that keeps the size, of x or of what `normalise` makes of it."""
    result = None
    for start, stop in _tiles(x.shape[2], rows):
        result = _placed(_convolution(conv, _with_halo(x, start, stop, normalise)), result, start, x.shape[2])
    assert result is not None
    return result


def _normalised(norm: nn.GroupNorm, x: Tensor, rows: int, activation: bool = True) -> Normalise:
    """The norm, with statistics over all of x, and SiLU."""
    batch, groups = x.shape[0], norm.num_groups
    total, squares = (torch.zeros(batch, groups, dtype=torch.float64, device=x.device) for _ in range(2))
    count = x[0].numel() // groups
    for start, stop in _tiles(x.shape[2], rows):
        tile = x[:, :, start:stop].float().reshape(batch, groups, -1)
        total += tile.sum(-1, dtype=torch.float64)
        squares += tile.double().square().sum(-1)
    mean = total / count
    scale = ((squares / count - mean.square()).clamp(min=0) + norm.eps).rsqrt()
    each = x.shape[1] // groups
    mean, scale = (part.repeat_interleave(each, 1)[..., None, None] for part in (mean, scale))
    weight = (scale * norm.weight[:, None, None]).float()
    bias = (norm.bias[:, None, None] - mean * scale * norm.weight[:, None, None]).float()

    def normalise(tile: Tensor) -> Tensor:
        y = tile.float() * weight + bias
        return (F.silu(y) if activation else y).to(x.dtype)

    return normalise


def _with_halo(x: Tensor, start: int, stop: int, normalise: Normalise | None) -> Tensor:
    """Rows start - 1 … stop of x, normalised; rows outside are zero, as a convolution pads them."""
    first, last = max(0, start - 1), min(x.shape[2], stop + 1)
    tile = x[:, :, first:last]
    tile = tile if normalise is None else normalise(tile)
    return F.pad(tile, (0, 0, first - (start - 1), stop + 1 - last))


def _convolution(conv: nn.Conv2d, tile: Tensor) -> Tensor:
    """The convolution of a tile that brings its rows of padding along."""
    return F.conv2d(tile, conv.weight, conv.bias, padding=(0, 1))


def _placed(tile: Tensor, whole: Tensor | None, start: int, height: int) -> Tensor:
    """The map with the tile in its place; made when the first tile shows its width and dtype."""
    if whole is None:
        size = (*tile.shape[:2], height, tile.shape[3])
        layout = preferred_format(tile)
        whole = torch.empty(size, dtype=tile.dtype, device=tile.device, memory_format=layout)
    whole[:, :, start : start + tile.shape[2]] = tile
    return whole


def _tiles(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, height, rows):
        yield start, min(start + rows, height)
