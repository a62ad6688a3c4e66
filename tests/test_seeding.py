from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bld.errors import SettingError
from bld.seeding import (
    IN_CACHE,
    derive_seed,
    hashed_uniform,
    keyed_draws,
    keyed_generator,
    keyed_permutation,
    uniform,
)

GOLDEN = [
    [[3315470, 14890846, 9951048], [152529, 6042626, 405606]],
    [[16399691, 7709023, 4034750], [14854425, 1323160, 430866]],
]


def test_seeds_are_the_same_for_ever():
    """Golden values: a change here changes every sample anyone has noted a seed for."""
    assert derive_seed(0, "sample") == 4195026141985155272
    assert derive_seed(123, "noise", 4, 5) == 6320552177823956129
    assert torch.rand(2, generator=keyed_generator(0, "sample", 7)).tolist() == [
        0.8892875909805298,
        0.8975940942764282,
    ]
    assert keyed_permutation(0, "order", 3, 8).tolist() == [2, 5, 6, 7, 0, 1, 3, 4]
    generators = keyed_draws(0, "sample", range(7, 9))
    assert [(uniform((2, 3), generators) * 2**24).long().tolist() for _ in range(2)] == GOLDEN


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
    together = uniform((4, 3, 2), keyed_draws(0, "rows", range(4)))
    alone = [uniform((1, 3, 2), keyed_draws(0, "rows", [i])) for i in range(4)]
    assert together.dtype == torch.float32 and together.shape == (4, 3, 2)
    assert torch.equal(together, torch.cat(alone))
    assert ((together >= 0) & (together < 1)).all()
    assert torch.equal(uniform((2, 3, 2), keyed_draws(0, "rows", range(4))[1:3]), together[1:3])


@pytest.mark.parametrize("count", [1, 2, 7, IN_CACHE - 1, IN_CACHE + 2])
def test_a_row_is_the_same_in_any_batch_split_and_order(count: int):
    rows = [5, 0, 2**40, 3, 5]
    together = uniform((5, count), keyed_draws(1, "split", rows))
    assert torch.equal(together[0], together[4]) and not torch.equal(together[0], together[1])
    for i, row in enumerate(rows):
        assert torch.equal(uniform((1, count), keyed_draws(1, "split", [row]))[0], together[i])
    assert torch.equal(together, uniform((5, count), keyed_draws(1, "split", torch.tensor(rows))))
    assert torch.equal(hashed_uniform(keyed_draws(1, "split", rows).keys, 0, count), together)


def test_a_sequence_may_mix_draws_of_both_kinds():
    mixed = [keyed_draws(3, "mix", [0]), torch.Generator().manual_seed(9)]
    first, second = uniform((2, 4), mixed)
    assert torch.equal(first, uniform((1, 4), keyed_draws(3, "mix", [0]))[0])
    assert torch.equal(second, torch.rand(4, generator=torch.Generator().manual_seed(9)))


def test_draws_compile_without_a_break_and_take_the_call_as_a_tensor():
    """As they must inside a recorded graph; "eager" runs what was traced, without a C++ compiler."""
    keys = keyed_draws(0, "compiled", range(3)).keys
    compiled = torch.compile(hashed_uniform, fullgraph=True, backend="eager")
    for call in (0, 1, 70_000):
        assert torch.equal(compiled(keys, torch.tensor(call), 5), hashed_uniform(keys, call, 5))


# -- statistics, of a fixed seed: honest random numbers cross each bound for one seed in a million (|z| < 4.9)
ROWS, COUNT, CALLS = 64, 1024, 4


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    """(calls, rows, numbers) of neighbouring indices, calls and places."""
    generators = keyed_draws(0, "statistics", range(ROWS))
    return torch.stack([uniform((ROWS, COUNT), generators) for _ in range(CALLS)]).double()


def test_draws_are_uniform_as_a_whole_and_in_each_row_column_and_call(drawn: torch.Tensor):
    centred = (drawn - 0.5) * 12**0.5
    for axes in ((), (0, 2), (1, 2), (0, 1)):
        means = centred.mean(axes) if axes else centred.mean()
        z = means * (drawn.numel() / means.numel()) ** 0.5
        assert z.abs().max() < 4.9 + (means.numel() > 1) * 0.9  # of up to 1,024 means the largest
    bins = torch.histc(drawn, 256, 0, 1)
    expected = drawn.numel() / 256
    chi2 = float(((bins - expected) ** 2 / expected).sum())
    assert abs(chi2 - 255) / (2 * 255) ** 0.5 < 5.2
    assert drawn.min() >= 0 and drawn.max() < 1 and torch.equal(drawn * 2**24, (drawn * 2**24).round())


@pytest.mark.parametrize("lag", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2), (0, 0, COUNT // 2), (0, 1, 1), (2, 3, 5)])
def test_neighbouring_calls_keys_and_places_are_uncorrelated(drawn: torch.Tensor, lag: tuple[int, int, int]):
    a, b = drawn[: CALLS - lag[0], : ROWS - lag[1], : COUNT - lag[2]], drawn[lag[0] :, lag[1] :, lag[2] :]
    for f in (lambda x: x - 0.5, lambda x: (x - 0.5) ** 2 - 1 / 12, lambda x: (x * 2**24 % 2) - 0.5):
        product = f(a) * f(b)
        assert abs(float(product.mean() / product.std()) * product.numel() ** 0.5) < 4.9


def test_no_pair_of_draws_comes_twice(drawn: torch.Tensor):
    """2¹⁷ pairs of 2⁴⁸: chance repeats one in a quarter of 10⁵ seeds; streams that overlap would repeat many."""
    pairs = (drawn[..., : COUNT // 2] * 2**24).long() * 2**24 + (drawn[..., COUNT // 2 :] * 2**24).long()
    assert len(pairs.unique()) == pairs.numel()


def test_one_bit_of_a_key_or_a_call_changes_half_of_the_bits():
    keys = keyed_draws(0, "avalanche", range(256)).keys
    before = (hashed_uniform(keys, 0, 2) * 2**24).long()
    changes = [(hashed_uniform(keys ^ (1 << bit if bit < 63 else -(2**63)), 0, 2) * 2**24).long() for bit in range(64)]
    changes += [(hashed_uniform(keys, 1 << bit, 2) * 2**24).long() for bit in range(31)]
    for after in changes:
        flipped = ((before ^ after).unsqueeze(-1) >> torch.arange(24)) & 1
        z = (float(flipped.double().mean()) - 0.5) * 2 * flipped.numel() ** 0.5
        assert abs(z) < 5.8  # of 95 the largest


def test_one_generator_draws_for_the_whole_batch_and_none_is_the_global_one():
    first = uniform((4, 3), keyed_generator(0, "batch"))
    assert torch.equal(first, torch.rand(4, 3, generator=keyed_generator(0, "batch")))
    torch.manual_seed(5)
    drawn = uniform((4, 3), None)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(4, 3))


def test_a_generator_moves_on_from_draw_to_draw():
    generators = keyed_draws(0, "stream", range(2))
    assert not torch.equal(uniform((2, 3), generators), uniform((2, 3), generators))


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_generators_than_samples_is_refused(count: int):
    with pytest.raises(SettingError, match=f"{count} generators .*2 samples"):
        uniform((2, 3), keyed_draws(0, "x", range(count)))


def test_no_samples_need_no_generators():
    assert uniform((0, 3), []).shape == (0, 3)


def test_a_permutation_holds_every_index_once_and_changes_with_the_epoch():
    orders = [keyed_permutation(0, "order", epoch, 1000) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], keyed_permutation(0, "order", 0, 1000))
