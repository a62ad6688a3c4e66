"""What a report and a card say of a model was measured of the model that is saved, not of a training ahead of it."""

import json
from pathlib import Path

import pytest
import torch

from bld.evaluation.load_run import open_run
from bld.pipeline.card import metrics
from bld.pipeline.recorded import held_out_figures
from bld.report.page import _key_figures
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

DRAWN, PROBABLE = "held_out_drawn_bits_per_bit", "held_out_bits_per_bit"


def told(run: Path) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(key figures of the report, rows of the card)."""
    return _key_figures(open_run(RunFolder(run), torch.device("cpu"))), list(metrics(run, {}))


def add_line(run: Path, **line: float | str) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def without(run: Path, entry: str) -> None:
    """The run as an older version left it."""
    progress = json.loads((run / "progress.json").read_text())
    for stage in ("tokenizer", "prior"):
        del progress[stage][entry]
    (run / "progress.json").write_text(json.dumps(progress))


@pytest.mark.parametrize("older", [False, True])
def test_what_a_training_measured_since_the_model_was_saved_is_not_told_of_it(run_copy: Path, older: bool):
    if older:
        without(run_copy, "held_out")
    before = told(run_copy)
    add_line(run_copy, stage="tokenizer", step=7, held_out_psnr=99.9, held_out_drawn_psnr=99.8)
    add_line(run_copy, stage="prior", step=9, held_out_loss=0.01, **{DRAWN: 0.001})
    assert told(run_copy) == before
    assert any("step 6 of the prior" in how for _, _, how in before[1])


def test_of_two_bounds_that_of_the_saved_model_is_told(run_copy: Path):
    """codes.draws may be set to 0 when a training goes on: from then on the bound is of the most probable codes."""
    lines = [
        {"stage": "prior", "step": 3, DRAWN: 0.9},
        {"stage": "prior", "step": 6, PROBABLE: 0.5, "held_out_loss": 0.1},
    ]
    assert held_out_figures("prior", {"prior": {"steps": 6}}, lines) == ({PROBABLE: 0.5, "held_out_loss": 0.1}, 6)
    run = RunFolder(run_copy)
    Recipe(run.adopt(None, ["codes.draws=0", "prior_training.steps=8"], None), run, lambda _: None).train_prior()
    assert PROBABLE in run.progress()["prior"]["held_out"] and DRAWN not in run.progress()["prior"]["held_out"]
    figures, card = told(run_copy)
    assert any("most probable code of" in meaning for _, _, meaning in figures)
    assert not any("has the prior learned" in meaning for _, _, meaning in figures)
    assert any(how.startswith("most probable codes of held-out images, step 8") for _, _, how in card)


def test_nothing_is_told_of_a_stage_that_measured_nothing():
    assert held_out_figures("prior", {}, []) == ({}, 0)
    assert held_out_figures("prior", {"prior": {"steps": 3, "held_out": {}}}, [{"stage": "prior", "step": 3}]) == (
        {},
        3,
    )
