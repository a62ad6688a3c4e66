"""A network's forward as a CUDA graph: one launch in place of hundreds, which is what small batches wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bld.runtime.precision import Autocast

Forward = Callable[..., Tensor]
Inputs = Sequence[Tensor | None]

MOST_SAMPLES = 16  # of a batch: beyond, computing takes longer than launching
MOST_SHAPES = 8
WARM_UPS = 3

_recording = threading.Lock()  # of the whole process: one graph is recorded at a time


class Recordings:
    """The recordings of one frozen network's forward, by kind of call.

    Calls are of one kind if all that decides which kernels run is the same: shapes, dtypes, device, stream, autocast,
    inference mode, TF32.  The first calls of a kind are computed without recording, so that a sampling of few steps
    does not pay for one, and what is made at a first call is part of none.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()  # threads that call the same recording write to the same inputs
        self._by_kind: dict[Any, Callable[[Inputs], Tensor] | int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recordings:
        return Recordings()  # of the copy's own weights

    def of(self, network: Forward, inputs: Inputs, device: torch.device) -> Callable[[Inputs], Tensor] | None:
        """What to replay for these inputs; None where the network itself is to be called."""
        key = (*(None if x is None else (x.shape, x.dtype, x.device) for x in inputs), *_surroundings(device))
        known = self._by_kind.get(key, 0)
        if not isinstance(known, int):
            return known
        if key not in self._by_kind and len(self._by_kind) >= MOST_SHAPES:
            self._by_kind.pop(next(iter(self._by_kind)))
        made = self._by_kind[key] = known + 1 if known < WARM_UPS else _Recording(network, inputs)
        return None if isinstance(made, int) else made


class Replayed:
    """A frozen network as a sampler calls it, replaying what `recordings` has of it; no gradients.

    Larger batches run as they are.  The inputs are copied to where they lay when recorded, the result is a copy.
    """

    def __init__(self, network: Forward, recordings: Recordings | None = None):
        self.network, self.recordings = network, recordings or Recordings()

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """What the network gives for these inputs."""
        first = inputs[0]
        assert first is not None
        if len(first) > MOST_SAMPLES or torch.is_grad_enabled():
            return self.network(*inputs)
        with self.recordings.turn, _on(first.device):
            replay = self.recordings.of(self.network, inputs, first.device)
            if replay is not None:
                return replay(inputs)
        return self.network(*inputs)


class _Recording:
    """One forward on the present device, recorded; it has been computed before."""

    def __init__(self, network: Forward, inputs: Inputs):
        self.inputs = [None if x is None else x.clone() for x in inputs]
        precision = Autocast.here("cuda")
        self.graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile must not end this recording.  Autocast's cache would keep casts of this
        # recording after its end, and give them to others.
        recorded = torch.cuda.graph(self.graph, capture_error_mode="thread_local")
        uncached = torch.autocast("cuda", precision.dtype, enabled=precision.is_on, cache_enabled=False)
        with _recording, recorded, uncached:
            self.output = network(*self.inputs)

    def __call__(self, inputs: Inputs) -> Tensor:
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
    exact = torch.get_float32_matmul_precision()
    return Autocast.here(device), torch.is_inference_mode_enabled(), exact, stream
