"""Recording forwards as CUDA graphs: when it records, when it replays, when it leaves the network alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bld.priors import Denoiser, DenoiserConfig, replayed
from bld.priors.replayed import MOST_SAMPLES, MOST_SHAPES, Replayed

CONFIG = DenoiserConfig(4, 4, 8, steps=8, num_classes=3, dim=16, depth=1, heads=2)


class Recorded:
    """Stands for a CUDA graph where there is no GPU: calls the network, and remembers what it was made for."""

    made: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor | None]):
        self.network = network
        Recorded.made.append(tuple(inputs[0].shape))  # type: ignore[union-attr]

    def __call__(self, inputs: Sequence[Tensor | None]) -> Tensor:
        return self.network(*inputs)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    monkeypatch.setattr(replayed, "_Recording", Recorded)
    Recorded.made = []
    return Recorded.made


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones(batch, 16, 8, dtype=torch.uint8), torch.ones(batch, dtype=torch.long), torch.zeros(batch).long()


@torch.no_grad()
def test_it_records_once_for_each_shape_and_anew_for_changed_weights(recorded: list):
    network = Denoiser(CONFIG).eval()
    called = Replayed(network)
    for batch in (1, 2, 1, 2):
        assert torch.equal(called(*inputs(batch)), network(*inputs(batch)))
    called(*inputs(1)[:2], None)  # without labels it is another graph
    assert [shape[0] for shape in recorded] == [1, 2, 1]
    Replayed(network)(*inputs(1))  # another sampling of the same network
    assert len(recorded) == 3
    network.head.weight.add_(1)
    called(*inputs(1))
    assert len(recorded) == 4


def test_large_batches_and_gradients_go_through_the_network_itself(recorded: list):
    called = Replayed(Denoiser(CONFIG).eval())
    with torch.no_grad():
        called(*inputs(MOST_SAMPLES + 1))
    assert called(*inputs(1)).requires_grad
    assert recorded == []


@torch.no_grad()
def test_it_does_not_keep_recordings_without_end(recorded: list):
    called = Replayed(Denoiser(CONFIG).eval())
    for batch in range(1, MOST_SHAPES + 3):
        called(*inputs(batch))
    called(*inputs(1))  # the oldest was given up
    assert len(recorded) == MOST_SHAPES + 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("bf16", [False, True])
@torch.no_grad()
def test_a_replayed_forward_gives_what_the_network_gives(bf16: bool):
    network = Denoiser(CONFIG).cuda().eval()
    called = network.for_sampling()
    assert isinstance(called, Replayed)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        for step in (1, 5, 8):
            given = [x.cuda() for x in inputs(2)]
            given[1].fill_(step)
            torch.testing.assert_close(called(*given), network(*given))


def test_on_a_cpu_the_network_is_called_itself():
    network = Denoiser(CONFIG)
    assert network.for_sampling() is network
