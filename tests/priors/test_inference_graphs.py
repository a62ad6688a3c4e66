"""Recording forwards as CUDA graphs: when it records, when it replays, when it leaves the network alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bld.priors import Denoiser, DenoiserConfig, inference
from bld.priors.inference import MOST_SAMPLES, MOST_SHAPES, GraphReplay

CONFIG = DenoiserConfig(4, 4, 8, steps=8, num_classes=3, dim=16, depth=1, heads=2)


class Recorded:
    """Stands for a CUDA graph where there is no GPU: it replays a forward as it was recorded, on shared inputs."""

    made: ClassVar[list[Recorded]] = []

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor | None]):
        self.network, self.inputs = network, [None if x is None else x.clone() for x in inputs]
        self.batch, self.device = len(self.inputs[0]), present[-1]  # type: ignore[arg-type]
        self.kind = surroundings()
        Recorded.made.append(self)

    def __call__(self, inputs: Sequence[Tensor | None]) -> Tensor:
        assert present[-1] == self.device, "a graph of one device is launched on another"
        assert self.kind == surroundings(), "a graph recorded otherwise is replayed"
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given)
        time.sleep(0.002)  # in which another thread could write its own inputs
        return self.network(*self.inputs)


def surroundings() -> tuple[bool, torch.dtype, bool]:
    """What decides the kernels of a forward on a CPU, besides its inputs."""
    is_on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return is_on, dtype, torch.is_inference_mode_enabled()


present: list[torch.device] = []  # devices entered, as `torch.cuda.device` does


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        present.append(device)
        yield
        present.pop()

    monkeypatch.setattr(inference, "_GraphRecording", Recorded)
    monkeypatch.setattr(inference, "_on", on)
    monkeypatch.setattr(inference, "WARM_UPS", 0)
    Recorded.made = []
    return Recorded.made


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones(batch, 16, 8, dtype=torch.uint8), torch.ones(batch, dtype=torch.long), torch.zeros(batch).long()


@torch.no_grad()
def test_it_records_once_for_each_shape(recorded: list[Recorded]):
    network = Denoiser(CONFIG).eval()
    called = GraphReplay(network)
    for batch in (1, 2, 1, 2):
        assert torch.equal(called(*inputs(batch)), network(*inputs(batch)))
    called(*inputs(1)[:2], None)  # without labels it is another graph
    assert [each.batch for each in recorded] == [1, 2, 1]


def test_the_first_calls_of_a_kind_are_computed_as_they_come(recorded: list[Recorded], monkeypatch: pytest.MonkeyPatch):
    """They warm up what a recording must not hold, and a sampling of few steps pays for none."""
    monkeypatch.setattr(inference, "WARM_UPS", 3)
    network = Denoiser(CONFIG).eval().for_inference()
    called = GraphReplay(network)
    made = []
    with torch.no_grad():
        for _ in range(5):
            assert torch.equal(called(*inputs(1)), network(*inputs(1)))
            made.append(len(recorded))
        called(*inputs(2))
    assert made == [0, 0, 0, 1, 1] and len(recorded) == 1


def test_it_records_anew_under_another_autocast_or_mode(recorded: list[Recorded]):
    called = GraphReplay(Denoiser(CONFIG).eval())
    for _ in range(2):
        with torch.no_grad():
            called(*inputs(1))
            for dtype in (torch.bfloat16, torch.float16):
                with torch.autocast("cpu", dtype):
                    called(*inputs(1))
        with torch.inference_mode():
            called(*inputs(1))
    kinds = [(is_on, dtype) for is_on, dtype, _ in (each.kind for each in recorded)]
    assert kinds == [(False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float16), (False, torch.bfloat16)]
    assert [each.kind[-1] for each in recorded] == [False, False, False, True]


def test_it_records_anew_where_products_may_be_rounded_to_tf32(recorded: list[Recorded]):
    called, before = GraphReplay(Denoiser(CONFIG).eval()), torch.get_float32_matmul_precision()
    try:
        with torch.no_grad():
            for precision in ("highest", "high", "highest"):
                torch.set_float32_matmul_precision(precision)
                called(*inputs(1))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(recorded) == 2


@torch.no_grad()
def test_it_records_and_replays_on_the_device_of_the_tensors(recorded: list[Recorded]):
    """`meta` stands for a second GPU."""
    called = GraphReplay(lambda z, t, labels: z.float())
    for _ in range(2):
        for device in ("cpu", "meta"):
            assert called(*(x.to(device) for x in inputs(1))).device == torch.device(device)
    assert [each.device for each in recorded] == [torch.device("cpu"), torch.device("meta")] and present == []


def test_threads_take_turns_at_the_shared_inputs(recorded: list[Recorded]):
    network = Denoiser(CONFIG).eval()
    nn.init.normal_(network.head.weight)
    called, right = GraphReplay(network), []

    def sample(step: int) -> None:
        z, _, labels = inputs(2)
        t = torch.full((2,), step)
        with torch.no_grad():
            right.extend(torch.equal(called(z, t, labels), network(z, t, labels)) for _ in range(5))

    threads = [threading.Thread(target=sample, args=(step,)) for step in (1, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 10 and len(recorded) == 1


def test_a_copy_for_inference_has_recordings_of_its_own_weights(monkeypatch: pytest.MonkeyPatch, recorded: list):
    network = Denoiser(CONFIG).eval()
    monkeypatch.setattr(Denoiser, "device", torch.device("cuda"))
    first = network.for_inference()
    called = first.for_sampling()
    assert isinstance(called, GraphReplay) and first.for_sampling().recordings is called.recordings
    with torch.no_grad():
        before = called(*inputs(1))
        network.head.bias.add_(1)
        assert torch.equal(called(*inputs(1)), before)
        again = network.for_inference().for_sampling()
        torch.testing.assert_close(again(*inputs(1)), before + 1)
        assert len(recorded) == 2
    assert network.for_sampling() is network  # which is trained: nothing of it is recorded


def test_large_batches_and_gradients_go_through_the_network_itself(recorded: list):
    called = GraphReplay(Denoiser(CONFIG).eval())
    with torch.no_grad():
        called(*inputs(MOST_SAMPLES + 1))
    assert called(*inputs(1)).requires_grad
    assert recorded == []


@torch.no_grad()
def test_it_does_not_keep_recordings_without_end(recorded: list):
    called = GraphReplay(Denoiser(CONFIG).eval())
    for batch in range(1, MOST_SHAPES + 3):
        called(*inputs(batch))
    called(*inputs(1))  # the oldest was given up
    assert len(recorded) == MOST_SHAPES + 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("bf16", [False, True])
@torch.no_grad()
def test_a_replayed_forward_gives_what_the_network_gives(bf16: bool):
    network = Denoiser(CONFIG).cuda().eval()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        called = network.for_inference().for_sampling()
        assert isinstance(called, GraphReplay)
        for step in (1, 5, 8, 2, 3, 8):  # the first ones are not replayed
            given = [x.cuda() for x in inputs(2)]
            given[1].fill_(step)
            torch.testing.assert_close(called(*given), network(*given))


def test_on_a_cpu_the_network_is_called_itself():
    network = Denoiser(CONFIG).for_inference()
    assert network.for_sampling() is network
