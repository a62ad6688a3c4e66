"""Forwards without gradients, made faster: packed weights, and CUDA graphs for small batches.

Packing: on a CPU a linear layer's weight is laid out once for oneDNN, in place of at every call, and GELU is computed
in the same pass as the product before it.  On a GPU under autocast a weight is cast once, in place of at every call.
Products run in the precision asked for; what goes from block to block stays float32, so that in bfloat16 the result is
nearer to float32's than that of the plain blocks (`benchmarks/forward.py`).

Graphs: a forward is recorded once as a CUDA graph, and replayed: one launch in place of hundreds, which is what small
batches wait for.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.runtime.precision import Autocast

Forward = Callable[..., Tensor]
Inputs = Sequence[Tensor | None]

MOST_SAMPLES = 16  # of a batch that a graph serves: beyond, computing takes longer than launching
MOST_SHAPES = 8  # that graphs are kept of
WARM_UPS = 3  # calls of a shape before it is recorded

_recording = threading.Lock()  # of the whole process: one graph is recorded at a time


# -- packed weights ---------------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """x·Wᵀ + b, or GELU of it, with W in the precision and layout that it is used in."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, gelu: bool = False):
        super().__init__()
        self.dtype, self.gelu = dtype, gelu
        self.weight = linear.weight.detach().to(dtype, copy=True)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        self.is_laid_out = self.weight.device.type == "cpu"
        if self.is_laid_out:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) of any precision → (…, out), of the weight's dtype."""
        x = x.to(self.dtype)
        if self.is_laid_out:
            activation = "gelu" if self.gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "none")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


class PackedBlock(nn.Module):
    """A copy of a block, with all its linear layers packed and all else float32; it takes any precision."""

    def __init__(self, block: Any, dtype: torch.dtype):
        super().__init__()
        packed: dict[Any, Any] = {block.activate: nn.Identity()}  # within the layer before it
        for part in block.modules():
            if isinstance(part, nn.Linear):
                packed[part] = PackedLinear(part, dtype, gelu=part is block.expand)
            else:
                for own in part.parameters(recurse=False):
                    packed[own] = nn.Parameter(own.detach().to(torch.float32, copy=True), requires_grad=False)
        self.block = copy.deepcopy(block, {id(old): new for old, new in packed.items()})

    def forward(self, x: Tensor, *how: Any, **also: Any) -> Tensor:
        """(B, M, D) → (B, M, D), float32; the other arguments are the block's."""
        with torch.autocast(x.device.type, enabled=False):
            return self.block(x.float(), *how, **also)


def pack_blocks(blocks: nn.ModuleList, precision: Autocast) -> nn.ModuleList | None:
    """The blocks packed in that precision; None where they cannot be, or would not be faster."""
    dtype = _packable(next(blocks.parameters(), None), precision)
    return None if dtype is None else nn.ModuleList(PackedBlock(block, dtype) for block in blocks)


def _packable(weight: Tensor | None, precision: Autocast) -> torch.dtype | None:
    """The precision of the products."""
    if type(weight) is not nn.Parameter:  # spread over processes, or simulated
        return None
    dtype = precision.dtype if precision.is_on else weight.dtype
    if weight.device.type == "cuda":
        return dtype if precision.is_on and weight.dtype == torch.float32 else None
    usable = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype if weight.device.type == "cpu" and usable and _has_onednn() else None


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


# -- CUDA graphs ------------------------------------------------------------------------------------------


class GraphRecordings:
    """The recordings of one frozen network's forward, by kind of call.

    Calls are of one kind if all that decides which kernels run is the same: shapes, dtypes, device, stream, autocast,
    inference mode, TF32.  The first calls of a kind are computed without recording, so that a sampling of few steps
    does not pay for one, and what is made at a first call is part of none.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()  # threads that call the same recording write to the same inputs
        self._by_kind: dict[Any, Callable[[Inputs], Tensor] | int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphRecordings:
        return GraphRecordings()  # of the copy's own weights

    def of(self, network: Forward, inputs: Inputs, device: torch.device) -> Callable[[Inputs], Tensor] | None:
        """What to replay for these inputs; None where the network itself is to be called."""
        key = (*(None if x is None else (x.shape, x.dtype, x.device) for x in inputs), *_surroundings(device))
        known = self._by_kind.get(key, 0)
        if not isinstance(known, int):
            return known
        if key not in self._by_kind and len(self._by_kind) >= MOST_SHAPES:
            self._by_kind.pop(next(iter(self._by_kind)))
        made = self._by_kind[key] = known + 1 if known < WARM_UPS else _GraphRecording(network, inputs)
        return None if isinstance(made, int) else made


class GraphReplay:
    """A frozen network as a sampler calls it, replaying what `recordings` has of it; no gradients.

    Larger batches run as they are.  The inputs are copied to where they lay when recorded, the result is a copy.
    """

    def __init__(self, network: Forward, recordings: GraphRecordings | None = None):
        self.network, self.recordings = network, recordings or GraphRecordings()

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


class _GraphRecording:
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
