"""A network's forward as a CUDA graph: one launch in place of hundreds, which is what small batches wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

MOST_SAMPLES = 16  # of a batch: beyond, computing takes longer than launching
MOST_SHAPES = 8
WARM_UPS = 3

_recording = threading.Lock()  # of the whole process: one graph is recorded at a time


class Replayed:
    """A frozen network as a sampler calls it: recorded once per kind of call, then replayed; no gradients.

    Larger batches run as they are.  The inputs are copied to where they lay when recorded, the result is a copy.  What
    shaped the kernels that were recorded makes a kind of its own: shapes, dtypes, device, stream, autocast, inference
    mode.  Threads take turns, since they share those inputs.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self._recordings: dict[Any, Callable[[Sequence[Tensor | None]], Tensor]] = {}
        self._turn = threading.Lock()

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """What the network gives for these inputs."""
        first = inputs[0]
        assert first is not None
        if len(first) > MOST_SAMPLES or torch.is_grad_enabled():
            return self.network(*inputs)
        with self._turn, _on(first.device):
            key = (*(None if x is None else (x.shape, x.dtype, x.device) for x in inputs), *_surroundings(first.device))
            if key not in self._recordings:
                if len(self._recordings) >= MOST_SHAPES:
                    self._recordings.pop(next(iter(self._recordings)))
                self._recordings[key] = _Recording(self.network, inputs)
            return self._recordings[key](inputs)


class _Recording:
    """One forward on the present device, recorded."""

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor | None]):
        self.inputs = [None if x is None else x.clone() for x in inputs]
        enabled, dtype = _autocast()
        with _recording:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # what is made at a first call must not be recorded
                for _ in range(WARM_UPS):
                    network(*self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            # What other threads do meanwhile is none of this recording's business.  Autocast's cache would hold casts
            # of this recording beyond it, and give them to others.
            recorded = torch.cuda.graph(self.graph, capture_error_mode="thread_local")
            with recorded, torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
                self.output = network(*self.inputs)

    def __call__(self, inputs: Sequence[Tensor | None]) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


def _on(device: torch.device) -> AbstractContextManager[object]:
    """While entered, recordings and replays are of this device: a graph's launch goes to the present one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _surroundings(device: torch.device) -> tuple[object, ...]:
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    return *_autocast(), torch.is_inference_mode_enabled(), stream


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
