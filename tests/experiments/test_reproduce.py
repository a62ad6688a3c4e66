"""`bld reproduce` through its command line, at a scale of seconds: pages, sharing, resuming, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bld.cli import main
from bld.experiments import scales
from bld.experiments.reproduce import titles
from bld.experiments.runner import Sampling, Workshop
from bld.experiments.scales import DIGITS, PRIORS
from bld.experiments.tables import ITEMS
from bld.experiments.verdict import Comparison
from bld.training.config import load_settings

pytest.importorskip("torch_fidelity")

TINY = replace(
    DIGITS,
    name="tiny",
    words=(
        *DIGITS.words,
        "tokenizer.base_channels=8",
        "tokenizer.embed_dim=8",
        "tokenizer_training.steps=4",
        "tokenizer_training.previews=1",
        "prior.dim=32",
        "prior.depth=1",
        "prior.heads=2",
        "prior_training.steps=4",
        "prior_training.previews=1",
    ),
    samples=24,
    classifier_steps=3,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(scales.SCALES, "tiny", TINY)
    monkeypatch.setattr("bld.experiments.runner.LIKELIHOOD_CODES", 16)


def run(root: Path, name: str, *more: str) -> str:
    """The page that the command wrote."""
    assert main(["reproduce", name, "--scale", "tiny", "--seeds", "2", "--out", str(root), *more]) == 0
    return (root / "pages" / f"{name}-tiny.md").read_text(encoding="utf-8")


def test_a_table_of_priors_is_trained_measured_judged_and_written(root, capsys):
    page = run(root, "table5")
    assert "bld reproduce table5 --scale tiny --seeds 2" in page and str(root) not in page
    assert "Machine:" in page and "1,000" not in page.split("Prior:")[1].split(".")[0]
    for label in ("autoregressive, 16 steps", "absorbing, 16 steps", "binary diffusion, 64 steps"):
        assert f"| {label} |" in page
    assert "| 256 | 7.25 | 8.23 |" in page  # the paper's own
    assert "**Too little training to say**, over 2 training seeds" in page  # four steps
    assert "| an untrained network |" in page
    raw = json.loads((root / "pages" / "table5-tiny.json").read_text(encoding="utf-8"))
    assert raw["verdict"] == "too little training to say" and raw["gate"]["passed"] is False
    assert len(raw["values"]["an untrained network"]["fd"]) == 2
    for comparison in raw["comparisons"]:  # a reader can judge again
        again = Comparison(comparison["words"], comparison["low"], comparison["high"], comparison["paired"])
        assert again.raw() == comparison and comparison["paired"]
        assert comparison["low"] == raw["values"]["binary diffusion, 64 steps"]["fd"]
    assert "FD (classifier digits)" in page and "FID" not in page.replace("paper: FID", "").split("What differs")[0]
    with Image.open(root / "pages" / "table5-tiny.png") as picture:
        assert picture.width > 100
    assert "table5-tiny" in (root / "pages" / "README.md").read_text(encoding="utf-8")


def test_the_same_command_again_trains_and_measures_nothing(root, capsys):
    run(root, "table5")
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.safetensors")}
    page = run(root, "table5")
    said = capsys.readouterr().out
    assert "Sampling" not in said and "Counting" not in said
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.safetensors")} == before
    assert page == run(root, "table5")


def test_experiments_share_what_they_train(root):
    run(root, "table5")
    run(root, "figure5")
    priors = {path.name for path in (root / "tiny" / "priors").iterdir()}
    kinds = ("bernoulli", "autoregressive", "absorbing", "target-z0", "evidence-off")
    assert priors == {f"{kind}-seed{s}" for kind in kinds for s in (0, 1)}
    assert {path.name for path in (root / "tiny" / "tokenizers").iterdir()} == {"binary-seed0", "binary-seed1"}


def test_a_lost_figure_is_measured_again_the_same(root):
    page = run(root, "table5")
    for kind in ("quality", "bits"):
        lost = sorted((root / "tiny" / "results").glob(f"{kind}-*.json"))[:2]
        assert len(lost) == 2
        for path in lost:
            path.unlink()
    assert run(root, "table5") == page


def test_guidance_is_taught_and_judged_beside_real_images(root):
    page = run(root, "table2")
    assert "| real training images | 76.6% | 93.1% |" in page
    assert "CAS top-1" in page and "recognised" in page


@pytest.mark.parametrize("name", ["figureN", "figureO", "table6"])
def test_what_is_looked_at_gets_its_page_and_picture(root, name):
    page = run(root, name)
    assert page.startswith("# ") and "## How it was judged" in page
    if name != "table6":
        assert (root / "pages" / f"{name}-tiny.png").is_file()


def test_every_table_and_figure_is_there_with_claim_rule_and_rows():
    wanted = {f"table{i}" for i in range(1, 8)} | {f"figure{x}" for x in "457AMNO"}
    wanted |= {"training-steps", "guided-steps", "gaussian-steps", "draws", "posterior"}
    assert set(titles()) == wanted
    for item in ITEMS:
        rows = item.rows(DIGITS, 16)
        assert item.claim and len({row.label for row in rows}) == len(rows) >= 2
        assert all(row.prior in PRIORS or not row.prior for row in rows)
        values = {row.label: {f: [1.0, 1.0] for f in (*item.figures, "diversity", "recall")} for row in rows}
        assert item.claims(values), item.name


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_at_paper_scale_every_row_can_be_trained_and_sampled(item, tmp_path):
    """Each row's settings hold together with the preset of its experiment, and its steps with its diffusion."""
    scale = scales.scale_for("paper", item.name)
    shop = Workshop(scale, tmp_path, lambda _: None, data="anywhere")
    for row in item.rows(scale, 256):
        if not row.prior:
            continue
        settings = load_settings(scale.preset, words=shop.words(shop.tokenizer_of(row.prior), row.prior, 0))
        process = settings.process(settings.tokenizer.code_shape, 1.0)
        assert row.sampling.steps is None or row.sampling.steps <= process.steps, row.label
        assert process.may_skip or row.sampling.steps in (None, process.steps), row.label
        assert not row.sampling.labelled or settings.prior.class_conditional, row.label
        assert row.sampling.posterior == "exact" or settings.prior.kind == "bernoulli", row.label
        assert row.sampling.reveal == "random" or settings.prior.kind == "absorbing", row.label


def test_the_steps_of_rows_at_paper_scale_are_the_papers():
    """Against the steps that the paper's tables print: Tables 1, 3 and 5; ours everywhere else."""
    printed = {
        "table1": {"LDM (Gaussian)": 200, "absorbing": 256, "ours, 16 steps": 16, "ours, 64 steps": 64},
        "table2": {"ours, ω = 2": 64},
        "table3": {f"1024×1024, 32×32 latent, {n} steps": n for n in (64, 256)},
        "table5": {"absorbing, 256 steps": 256, "binary diffusion, 64 steps": 64},
        "figureM": {f"ω = {w}": 64 for w in (0, 1, 2, 4)},
    }
    for item in ITEMS:
        rows = {row.label: row for row in item.rows(scales.scale_for("paper", item.name), 256)}
        for label, steps in printed.get(item.name, {}).items():
            assert rows[label].sampling.steps == steps, label


def test_a_code_length_stands_only_beside_the_sampling_it_is_of():
    rows = {row.label: row for item in ITEMS if item.name == "table5" for row in item.rows(DIGITS, 16)}
    assert [label for label, row in rows.items() if not row.has_bits] == [
        "absorbing, 16 steps, by confidence",
        "binary diffusion, 16 steps",
    ]


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("name", scales.SCALES)
def test_the_settings_of_every_run_fit_together(name, faithful, tmp_path):
    scale = scales.scale_for(name, "table5", faithful)
    shop = Workshop(scale, tmp_path, lambda _: None, data="anywhere")
    for name in PRIORS:
        load_settings(scale.preset, words=shop.words(shop.tokenizer_of(name), name, 0))
    for name in scale.formats:
        load_settings(scale.preset, words=shop.words(name, "gaussian" if name.startswith("real") else "bernoulli", 0))


def test_a_sample_does_not_depend_on_how_many_are_drawn(root):
    shop = Workshop(TINY, root, lambda _: None)
    pipeline = shop.pipeline("bernoulli", 0)
    few, many = (next(shop.batches(pipeline, Sampling(4), n))[0] for n in (3, 9))
    assert (few == many[:3]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel5"], "no experiment 'tabel5'. Did you mean 'table5'?"),
        (["table5", "--scale", "digit"], "Unknown scale 'digit'. Did you mean 'digits'?"),
        (["table5", "--scale", "cifar10"], "The scale cifar10 brings no images: add --data"),
        (["table5", "--seeds", "0"], "--seeds is at least 1, not 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, message, tmp_path, capsys):
    assert main(["reproduce", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_paper_scale_says_what_it_costs_and_waits(tmp_path, capsys, image_folder):
    folder = image_folder(4, size=16)
    assert main(["reproduce", "table7", "--scale", "paper", "--data", str(folder), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "trains 1 tokenizers and 7 priors, 3 times each" in said.out and "GFLOP" in said.out
    assert "repeat the command with --yes" in said.err


def test_runs_of_other_settings_or_images_are_never_taken(root, monkeypatch, capsys, image_folder):
    run(root, "figure5")
    monkeypatch.setitem(scales.SCALES, "tiny", replace(TINY, words=(*TINY.words, "prior_training.steps=5")))
    assert main(["reproduce", "figure5", "--scale", "tiny", "--out", str(root)]) == 2
    assert "trained on other images or with other settings" in capsys.readouterr().err
    monkeypatch.setitem(scales.SCALES, "tiny", TINY)
    monkeypatch.setattr("bld.experiments.runner.LIKELIHOOD_CODES", 16)
    other = image_folder(40, classes=2)
    assert main(["reproduce", "figure5", "--scale", "tiny", "--out", str(root), "--data", str(other)]) == 2
    assert "choose another --out, or delete it" in capsys.readouterr().err


def test_at_paper_scale_each_experiment_has_its_own_data_set():
    presets = {name: scales.scale_for("paper", name).preset for name in ("table2", "table3", "table4", "table5")}
    assert presets == {"table2": "imagenet256", "table3": "ffhq1024", "table4": "bedrooms256", "table5": "churches256"}
