"""How near do encoder and decoder come to the best single convolution of their own shapes?

    python benchmarks/tokenizer.py

The paper's tokenizer at 256 pixels, nf 128.  Encoding, decoding and a training step (forward, backward and update,
counted as three passes) against the 3×3 convolution of its own shapes that runs at the highest rate; and both memory
layouts of a training step, which is why one is preferred.
"""

from __future__ import annotations

from unittest import mock

import torch
import torch.nn.functional as F
from measuring import DEVICE, PRECISIONS, in_turn, options, precise, ratios, share_of_rate, spread, table, write
from torch import nn

from bld.planning.cost import flops
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder
from bld.training.config import load_settings

SHAPES = [(128, 256), (128, 128), (256, 64), (256, 32), (512, 16)]  # channels, pixels


def best_convolution(dtype: torch.dtype, batch: int) -> tuple[object, float, str]:
    """(call, its operations, which it is), both layouts tried."""
    found = []
    for channels, size in SHAPES:
        count = 2.0 * 9 * channels**2 * size**2 * batch
        for layout in (torch.channels_last, torch.contiguous_format):
            x = torch.randn(batch, channels, size, size, device=DEVICE, dtype=dtype).contiguous(memory_format=layout)
            w = torch.randn(channels, channels, 3, 3, device=DEVICE, dtype=dtype).contiguous(memory_format=layout)
            call = lambda x=x, w=w: F.conv2d(x, w, padding=1)  # noqa: E731
            found.append((count / min(in_turn({"c": call}, 4)["c"]), call, count, f"{channels} channels at {size}²"))
    _, call, count, name = max(found, key=lambda entry: entry[0])
    return call, count, name


def operations(config: AutoencoderConfig) -> tuple[int, int]:
    with torch.device("meta"), torch.no_grad():
        model = BinaryAutoencoder(config)
        images = torch.empty(1, 3, config.image_size, config.image_size)
        bits = torch.empty(1, *config.code_shape)
        return flops(lambda: model.features(images)), flops(lambda: model.decode(bits))


def training(model: nn.Module, images: torch.Tensor, precision: str):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with precise(precision):
            out = model(images, model.draw_noise(len(images), None))
        F.mse_loss(out.reconstruction, images).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def by_layout(preset: str, batch: int, precision: str) -> dict[str, object]:
    """A training step with feature maps in either layout, in turn."""
    config = load_settings(preset).tokenizer
    images = torch.rand(batch, 3, config.image_size, config.image_size, device=DEVICE) * 2 - 1
    step = training(BinaryAutoencoder(config).to(DEVICE), images, precision)

    def stepped(layout: torch.memory_format) -> None:
        with mock.patch("bld.tokenizer.layers.preferred_format", return_value=layout):
            step()

    layouts = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}
    times = in_turn({name: lambda x=layout: stepped(x) for name, layout in layouts.items()}, 3)
    return {"plain s": spread(times["plain"]).median, "channels-last / plain": ratios(times, "channels-last", "plain")}


def main() -> None:
    args = options(__doc__, batch=1 if DEVICE.type == "cpu" else 16, rounds=5)
    config, batch = AutoencoderConfig(), args.batch
    torch.manual_seed(0)
    encoding, decoding = operations(config)
    rows, layouts = [], []
    for precision, dtype in PRECISIONS.items():
        model = BinaryAutoencoder(config).to(DEVICE)
        images = torch.rand(batch, 3, 256, 256, device=DEVICE) * 2 - 1
        bits = torch.randint(0, 2, (batch, 16, 16, 32), device=DEVICE)
        convolution, its_flops, name = best_convolution(dtype, batch)
        with torch.no_grad(), precise(precision):
            calls = {
                "best": convolution,
                "encode": lambda m=model, x=images: m.features(x),
                "decode": lambda m=model, b=bits: m.decode(b),
            }
            times = in_turn(calls, args.rounds)
        step = training(model, images, precision)
        stepped = in_turn({"best": convolution, "step": step}, max(2, args.rounds // 2))
        shares = {
            "encode": share_of_rate(times, "encode", encoding * batch, "best", its_flops),
            "decode": share_of_rate(times, "decode", decoding * batch, "best", its_flops),
            "training step": share_of_rate(stepped, "step", 3 * (encoding + decoding) * batch, "best", its_flops),
        }
        rows.append({"precision": precision, "best convolution": name, "GFLOP/s": its_flops / spread(times["best"]).median / 1e9, **shares})  # fmt: skip  # noqa: E501
        table(rows[-1:])
        for preset, images_each in (("churches256", batch), ("emoji64", 16), ("cifar10", 32)):
            layouts.append({"precision": precision, "preset": preset, **by_layout(preset, images_each, precision)})
    table(rows)
    table(layouts)
    write(__file__, args.out, {"rows": rows, "layouts": layouts})


if __name__ == "__main__":
    main()
