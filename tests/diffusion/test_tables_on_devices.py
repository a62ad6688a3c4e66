"""What every step looks up is copied to a device once, not at every step; `meta` stands for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.diffusion.process import OnDevices, Process
from bld.priors import GaussianDiffusion


class Copies(TorchDispatchMode):
    """Counts what goes from a CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is torch.ops.aten._to_copy.default and source is not None and source.device.type == "cpu":
            self.count += made.device.type == "meta"
        return made


def test_a_table_is_copied_once_a_device():
    table = OnDevices(torch.arange(5.0))
    assert table.on("meta") is table.on(torch.device("meta")) and table.on("cpu") is table.on("cpu")
    assert torch.equal(table.on("cpu"), torch.arange(5.0))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_training_copies_no_table_to_the_device_after_its_first_step(kind: str):
    process: Process
    if kind == "gaussian":
        pytest.importorskip("diffusers")
        process, z0 = GaussianDiffusion(8), torch.zeros(3, 4, 2, device="meta")
    else:
        process, z0 = BernoulliDiffusion(NoiseSchedule("linear", 8)), torch.zeros(3, 4, 2, device="meta").byte()
    t = torch.ones(3, dtype=torch.long, device="meta")
    generator = torch.Generator()
    found = []
    for _ in range(3):
        with Copies() as copies:
            process.training_loss(lambda z, _: z.float(), z0, t, generator, 0.1)
        found.append(copies.count)
    assert found[0] > found[1] == found[2]
