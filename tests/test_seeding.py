from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bld.errors import SettingError
from bld.seeding import derive_seed, keyed_generator, keyed_generators, keyed_permutation, uniform


def test_seeds_are_the_same_for_ever():
    """Golden values: a change here changes every sample anyone has noted a seed for."""
    assert derive_seed(0, "sample") == 4195026141985155272
    assert derive_seed(123, "noise", 4, 5) == 6320552177823956129
    assert torch.rand(2, generator=keyed_generator(0, "sample", 7)).tolist() == [
        0.8892875909805298,
        0.8975940942764282,
    ]
    assert keyed_permutation(0, "order", 3, 8).tolist() == [2, 5, 6, 7, 0, 1, 3, 4]


def test_every_argument_matters():
    keys = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 0, 0),
        (0, "a", 0, 1),
        (0, "a", 1, 0),
    ]
    keys += [(0, "a", 10), (0, "a", 11), (0, "a", 1, 1)]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = [tuple(torch.rand(4, generator=keyed_generator(*key)).tolist()) for key in keys]
    assert all(a != b for a, b in itertools.combinations(draws, 2))


def test_integers_of_any_kind_name_the_same_draw():
    assert derive_seed(np.int64(3), "a", np.int32(4)) == derive_seed(3, "a", 4) == derive_seed(3, "a", torch.tensor(4))


def test_each_row_is_drawn_by_its_own_generator():
    together = uniform((4, 3, 2), keyed_generators(0, "rows", range(4)))
    alone = [uniform((1, 3, 2), keyed_generators(0, "rows", [i])) for i in range(4)]
    assert together.dtype == torch.float32 and together.shape == (4, 3, 2)
    assert torch.equal(together, torch.cat(alone))
    assert ((together >= 0) & (together < 1)).all()
    assert torch.equal(uniform((1, 3, 2), keyed_generator(0, "rows", 0)), alone[0])


def test_one_generator_draws_for_the_whole_batch_and_none_is_the_global_one():
    first = uniform((4, 3), keyed_generator(0, "batch"))
    assert torch.equal(first, torch.rand(4, 3, generator=keyed_generator(0, "batch")))
    torch.manual_seed(5)
    drawn = uniform((4, 3), None)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(4, 3))


def test_a_generator_moves_on_from_draw_to_draw():
    generators = keyed_generators(0, "stream", range(2))
    assert not torch.equal(uniform((2, 3), generators), uniform((2, 3), generators))


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_generators_than_samples_is_refused(count: int):
    with pytest.raises(SettingError, match=f"{count} generators were given for 2 samples: give one per sample"):
        uniform((2, 3), keyed_generators(0, "x", range(count)))


def test_no_samples_need_no_generators():
    assert uniform((0, 3), []).shape == (0, 3)


def test_a_permutation_holds_every_index_once_and_changes_with_the_epoch():
    orders = [keyed_permutation(0, "order", epoch, 1000) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], keyed_permutation(0, "order", 0, 1000))
