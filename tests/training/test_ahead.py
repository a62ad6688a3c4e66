"""Batches prepared by a thread, tried without a GPU: pinning and the choice of a GPU are replaced by witnesses."""

import threading
import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bld.training.ahead import READY, ahead

GPU = torch.device("cuda", 1)


class Pair(NamedTuple):
    """A batch as a stage gives it."""

    rows: Tensor
    condition: Tensor | None
    positions: range


@pytest.fixture
def gpu(monkeypatch) -> dict[str, list]:
    """What was asked of a GPU that is not there: chosen devices, and threads that pinned."""
    asked = {"chosen": [], "pinned by": []}

    def pin(tensor: Tensor) -> Tensor:
        asked["pinned by"].append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "set_device", asked["chosen"].append)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return asked


def pairs(count: int, made: list[int] | None = None):
    for i in range(count):
        if made is not None:
            made.append(i)
        yield Pair(torch.full((2,), i), None, range(i, i + 2))


def test_a_gpu_gets_the_same_batches_in_order_pinned_by_one_thread_on_its_own_device(gpu):
    batches = list(ahead(pairs(7), GPU))
    assert [(int(b.rows[0]), b.condition, b.positions) for b in batches] == [
        (i, None, range(i, i + 2)) for i in range(7)
    ]
    assert gpu["chosen"] == [GPU]
    assert len(gpu["pinned by"]) == 7 and len(set(gpu["pinned by"])) == 1
    assert gpu["pinned by"][0] != threading.current_thread().name


def test_no_more_than_a_few_batches_are_made_ahead_and_closing_ends_the_thread(gpu):
    made: list[int] = []
    batches = ahead(pairs(1000, made), GPU)
    for _ in range(3):
        next(batches)
    time.sleep(0.2)
    assert len(made) == 3 + READY
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert len(made) <= 3 + READY + 1


def test_an_error_in_the_thread_reaches_the_loop_after_the_batches_before_it(gpu):
    def failing():
        yield from pairs(2)
        raise ValueError("image 2 is gone")

    batches = ahead(failing(), GPU)
    assert [int(next(batches).rows[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="image 2 is gone"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_on_a_cpu_there_is_no_thread_and_nothing_is_made_ahead(gpu):
    made: list[int] = []
    batches = ahead(pairs(5, made), torch.device("cpu"))
    next(batches)
    assert made == [0] and gpu == {"chosen": [], "pinned by": []}
