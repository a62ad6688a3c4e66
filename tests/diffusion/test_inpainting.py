"""Known bits: kept to the bit, and shown to the network at the noise level it was trained at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes
from bld.errors import SettingError
from bld.seeding import keyed_draws

from .enumeration import CODES, Oracle, index_of, noised, strongly_dependent

INDEX = torch.arange(64)
DIFFUSION = BernoulliDiffusion(NoiseSchedule("linear", 8))
KNOWN = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.uint8)  # (N, c)


def watching(seen: list[tuple[int, Tensor]]):
    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append((int(t[0]), z_t.clone()))
        return torch.full(z_t.shape, 0.3)

    return denoise


MASKS = {
    "(N,)": torch.tensor([True, False, False]),
    "(n, N)": torch.tensor([[True, False, False], [False, False, True]]),
    "(n, N, c)": torch.tensor([[[1, 0], [0, 0], [0, 1]], [[0, 0], [1, 1], [0, 0]]]).bool(),
    "(1, N)": torch.tensor([[False, True, True]]),
}


@pytest.mark.parametrize("known_bits", ["noised", "clean"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("resample", [1, 3])
def test_known_bits_are_kept_exactly(mask: Tensor, known_bits: str, resample: int):
    codes = sample_codes(
        lambda z, t: torch.full(z.shape, 50.0),  # flips every bit at every step, the known ones too if it could
        (2, 3, 2),
        DIFFUSION,
        known=KNOWN.unsqueeze(0),
        mask=mask,
        known_bits=known_bits,
        resample=resample,
        generators=keyed_draws(0, "inpaint", range(2)),
    )
    keep = ~(mask.view(1, 3, 1) if mask.ndim == 1 else mask.unsqueeze(-1) if mask.ndim == 2 else mask)
    assert torch.equal(codes[keep.expand(2, 3, 2)], KNOWN.expand(2, 3, 2)[keep.expand(2, 3, 2)])


def test_each_sample_may_have_its_own_known_bits():
    known = torch.stack([KNOWN, 1 - KNOWN])
    codes = sample_codes(watching([]), (2, 3, 2), DIFFUSION, known=known, mask=torch.tensor([False, False, True]))
    assert torch.equal(codes[:, :2], known[:, :2])


@pytest.mark.parametrize("resample", [1, 2])
def test_the_network_sees_known_bits_noised_to_the_step_it_is_at(resample: int):
    seen: list[tuple[int, Tensor]] = []
    count = 4000
    sample_codes(
        watching(seen),
        (count, 3, 2),
        DIFFUSION,
        known=KNOWN.unsqueeze(0),
        mask=torch.tensor([False, True, False]),
        known_bits="noised",
        resample=resample,
        generators=keyed_draws(0, "noised", range(count)),
    )
    assert len(seen) == 7 * resample + 1
    for t, z_t in seen:
        for position in (0, 2):
            flipped = (z_t[:, position] ^ KNOWN[position]).double().mean(0)
            expected = (1 - DIFFUSION.retention(t)) / 2
            bound = 5.5 * (expected * (1 - expected) / count) ** 0.5
            # 5.5 standard deviations, at most 60 rates: false alarm below 3e-6 (normal approximation).
            assert ((flipped - expected).abs() < bound).all(), t


def test_clean_known_bits_are_seen_as_they_are():
    seen: list[tuple[int, Tensor]] = []
    sample_codes(
        watching(seen),
        (5, 3, 2),
        DIFFUSION,
        known=KNOWN.unsqueeze(0),
        mask=torch.tensor([False, True, False]),
        corrector_steps=1,
    )
    assert len(seen) == 16
    assert all((z_t[:, [0, 2]] == KNOWN[[0, 2]]).all() for _, z_t in seen)


def test_resampling_walks_each_step_but_the_last_that_often():
    seen: list[tuple[int, Tensor]] = []
    sample_codes(watching(seen), (1, 3, 2), DIFFUSION, steps=4, known=KNOWN[None], mask=torch.ones(3), resample=3)
    assert [t for t, _ in seen] == [8, 8, 8, 6, 6, 6, 4, 4, 4, 2]


def test_resampling_without_known_bits_walks_each_step_once():
    seen: list[tuple[int, Tensor]] = []
    sample_codes(watching(seen), (1, 3, 2), DIFFUSION, steps=4, resample=3)
    assert [t for t, _ in seen] == [8, 6, 4, 2]


def replacement(truth: Tensor, diffusion: BernoulliDiffusion, state: int, known_bits: str) -> float:
    """P(bit 0 is made 1) when the other five bits of a state are known, by propagating its two values.

    At each step the known bits are shown as they are, or noised afresh, apart from the past: so this is not
    P(bit 0 | the others).
    """
    oracle, one = Oracle(truth, diffusion), 0.5
    for t in range(diffusion.steps, 0, -1):
        shown = noised(diffusion.schedule, t)[state] if known_bits == "noised" else (state == INDEX).double()
        shown = shown + shown[INDEX ^ 1]  # of the five known bits alone
        probs = diffusion.reverse_probs(oracle.at(t), CODES, t, t - 1)[:, 0, 0]
        to_one = [(shown * probs)[CODES[:, 0, 0] == value].sum().item() for value in (0, 1)]
        one = (1 - one) * to_one[0] + one * to_one[1]
    return one


@pytest.mark.parametrize("known_bits", ["clean", "noised"])
@pytest.mark.parametrize("state", [0, 16, 48])
def test_inpainting_draws_from_the_enumerated_replacement_chain(state: int, known_bits: str):
    truth, count = strongly_dependent(), 3000
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 16))
    codes = sample_codes(
        Oracle(truth, diffusion),
        (count, 3, 2),
        diffusion,
        temperature=1.0,
        known=CODES[state : state + 1],
        mask=(torch.arange(6) == 0).view(1, 3, 2),
        known_bits=known_bits,
        final="draw",
        generators=keyed_draws(state, "one", range(count)),
    )
    assert set(index_of(codes).tolist()) <= {state, state + 1}
    expected = replacement(truth, diffusion, state, known_bits)
    bound = 5 * (expected * (1 - expected) / count) ** 0.5  # 5 standard deviations: false alarm 6e-7 each
    assert abs(codes[:, 0, 0].double().mean().item() - expected) < bound


def test_with_an_exact_network_clean_known_bits_come_nearer_to_the_conditional_distribution():
    """Mean over all codes of the distance to P(bit 0 | the others), enumerated."""
    truth = strongly_dependent()
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 16))
    error = {"clean": 0.0, "noised": 0.0}
    for state in range(0, 64, 2):
        weight = (truth[state] + truth[state + 1]).item()
        exact = truth[state + 1].item() / weight
        for known_bits in error:
            error[known_bits] += weight * abs(replacement(truth, diffusion, state, known_bits) - exact)
    assert error["clean"] < 0.75 * error["noised"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask": torch.zeros(4)}, r"mask.*\(4,\).*\(n, N, c\).*\(2, 3, 2\)"),
        ({"mask": torch.zeros(3, 3)}, r"mask.*\(3, 3\)"),
        ({"mask": torch.zeros(2, 3, 5)}, r"mask.*\(2, 3, 5\)"),
        ({"mask": torch.tensor(True)}, r"mask.*\(\)"),
        ({"known": KNOWN}, r"known.*\(3, 2\).*\(2, 3, 2\)"),
        ({"known": torch.zeros(3, 3, 2)}, r"known.*\(3, 3, 2\)"),
    ],
)
def test_known_bits_or_a_mask_of_another_shape_are_refused(settings: dict, message: str):
    arguments = {"known": KNOWN[None], "mask": torch.zeros(3), **settings}
    with pytest.raises(SettingError, match=message):
        sample_codes(lambda z, t: torch.zeros(z.shape), (2, 3, 2), DIFFUSION, **arguments)
