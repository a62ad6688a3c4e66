"""`prior.inpainting`: which part of a code a prior is shown without noise while it trains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bld.diffusion import BernoulliDiffusion
from bld.errors import SettingError
from bld.training.config import load_settings
from bld.training.holes import DRAWS, hidden_positions
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder


def is_rectangle(mask: Tensor) -> bool:
    rows, columns = mask.any(1), mask.any(0)
    return bool((mask == rows.unsqueeze(1) & columns).all()) and all(
        int((side[1:] != side[:-1]).sum()) <= 2 for side in (rows.int(), columns.int())
    )


def test_a_hole_is_a_rectangle_or_all_but_one():
    masks = hidden_positions(torch.rand(500, DRAWS, generator=torch.Generator().manual_seed(0)), 6, 5, 1.0).view(
        -1, 6, 5
    )
    assert all(is_rectangle(mask) or is_rectangle(~mask) for mask in masks)
    for size in (0, 30, 15):  # nothing known, nothing hidden, half of it: all are met
        assert any(int(mask.sum()) == size for mask in masks)


def test_the_edges_are_where_the_draws_say():
    draws = torch.tensor(
        [[0.0, 0.9, 0.5, 0.0, 0.0, 1.0], [0.0, 0.1, 0.5, 0.0, 0.0, 1.0], [0.7, 0.9, 0.5, 0.0, 0.0, 1.0]]
    )
    upper = torch.tensor([[True] * 4, [True] * 4, [False] * 4, [False] * 4])
    found = hidden_positions(draws, 4, 4, 0.7).view(-1, 4, 4)
    assert torch.equal(found[0], upper) and torch.equal(found[1], ~upper) and found[2].all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_as_many_images_have_a_hole_as_is_said(share: float):
    """Some holes hide all, and are not counted.  Five standard deviations: a false alarm in 2 million."""
    draws = torch.rand(4000, DRAWS, generator=torch.Generator().manual_seed(1))
    some_known = ~hidden_positions(draws, 8, 8, 1.0).all(1)
    found = int((~hidden_positions(draws, 8, 8, share).all(1)).sum())
    expected = share * int(some_known.sum())
    assert abs(found - expected) <= 5 * math.sqrt(expected * (1 - share))


def test_the_prior_learns_with_holes(tmp_path: Path, tiny_overrides: list[str], monkeypatch):
    seen: list[Tensor | None] = []
    real = BernoulliDiffusion.training_loss

    def watched(self, *args, hidden=None, **more):
        seen.append(hidden)
        return real(self, *args, hidden=hidden, **more)

    monkeypatch.setattr(BernoulliDiffusion, "training_loss", watched)
    for share in (0.5, 0.0):
        seen.clear()
        run = RunFolder(tmp_path / f"{share}")
        overrides = [*tiny_overrides, f"prior.inpainting={share}", "prior_training.previews=0"]
        recipe = Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None)
        recipe.train_tokenizer()
        recipe.encode()
        recipe.train_prior()
        if share:
            assert all(hidden is not None and hidden.any() and not hidden.all() for hidden in seen[:6])
            assert len({hidden.numpy().tobytes() for hidden in seen[:6] if hidden is not None}) == 6  # drawn anew
        else:
            assert seen[:6] == [None] * 6


def test_a_share_that_is_none_is_refused():
    with pytest.raises(SettingError, match=r"prior\.inpainting is a part of the images, 0 to 1, not 1\.5"):
        load_settings("digits", overrides=["prior.inpainting=1.5"])
