"""The notebook of the guided tour runs from top to bottom on hardly any training, and is kept with its results."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


def outputs_of(notebook):
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUR_TOKENIZER_STEPS", "4")
    monkeypatch.setenv("TOUR_PRIOR_STEPS", "6")
    notebook = nbformat.read(TOUR, as_version=4)
    shown = outputs_of(notebook)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises with the cell and its traceback
    for before, after in zip(shown, outputs_of(notebook), strict=True):
        assert pictures(before) == pictures(after)


def pictures(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_tour_is_kept_with_its_pictures_and_is_small():
    notebook = nbformat.read(TOUR, as_version=4)
    showing = [cell for cell in notebook.cells if cell.source.splitlines()[-1].startswith("show(")]
    assert len(showing) == 9 and all(pictures(cell.outputs) == 1 for cell in showing)
    assert all(output.output_type != "error" for outputs in outputs_of(notebook) for output in outputs)
    assert TOUR.stat().st_size < 600_000
