"""A network's forward as a CUDA graph: one launch in place of hundreds, which is what small batches wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bld.priors.kept import kept

MOST_SAMPLES = 16  # of a batch: beyond, computing takes longer than launching
MOST_SHAPES = 8
WARM_UPS = 3


class Replayed:
    """The network as a sampler calls it: recorded once per shape of its inputs, then replayed; on a GPU, no gradients.

    Larger batches run as they are.  The inputs are copied to where they lay when recorded, the result is a copy.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """What the network gives for these inputs."""
        first = inputs[0]
        assert first is not None
        if len(first) > MOST_SAMPLES or torch.is_grad_enabled():
            return self.network(*inputs)
        recordings = kept(self.network).setdefault("recordings", {})
        key = (*(None if x is None else (x.shape, x.dtype, x.device) for x in inputs), _autocast())
        if key not in recordings:
            if len(recordings) >= MOST_SHAPES:
                recordings.pop(next(iter(recordings)))
            recordings[key] = _Recording(self.network, inputs)
        return recordings[key](inputs)


class _Recording:
    """One forward, recorded."""

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor | None]):
        self.inputs = [None if x is None else x.clone() for x in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is made at a first call must not be recorded
            for _ in range(WARM_UPS):
                network(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        enabled, dtype = _autocast()
        # Autocast's cache would hold casts of this recording beyond it, and give them to others.
        with torch.cuda.graph(self.graph), torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            self.output = network(*self.inputs)

    def __call__(self, inputs: Sequence[Tensor | None]) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


def _autocast() -> tuple[bool, Any]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
