"""`benchmarks/gpu.py`, small and on a CPU: every part runs to its end, and its checks hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
PARTS = ("checks", "rates", "images", "cached")


def test_every_part_of_the_gpu_script_runs_small_and_keeps_what_it_found(tmp_path: Path):
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, str(SCRIPT), "--small", "--out", str(out)], check=True, capture_output=True)
    kept = json.loads(out.read_text())
    assert {part: kept[part]["state"] for part in PARTS} == dict.fromkeys(PARTS, "done")
    checks = {line["check"]: line["holds"] for line in kept["checks"]["lines"]}
    assert len(checks) == 8 and all(checks.values()), checks
    rates = [line for line in kept["rates"]["lines"] if "seconds" in line]
    assert len(rates) == 7 and all(line["flops"] > 0 and line["seconds"] > 0 for line in rates)
    assert len(kept["images"]["lines"]) == 3 and kept["cached"]["lines"][0]["online over cached"] > 1


def test_a_part_that_takes_too_long_leaves_what_it_had(tmp_path: Path):
    out = tmp_path / "gpu.json"
    program = "import gpu, pathlib, sys; gpu.LIMITS['rates'] = 0.01; gpu.run('rates', True, pathlib.Path(sys.argv[1]))"
    words = [sys.executable, "-c", program, str(out)]
    subprocess.run(words, check=True, capture_output=True, cwd=SCRIPT.parent)
    part = json.loads(out.read_text())["rates"]
    assert part["state"].startswith("ended with") and part["lines"] == []


def test_a_training_of_the_gpu_script_leaves_samples_and_what_was_measured(tmp_path: Path):
    overrides = ["--train", "digits", "--budget", "6s", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(SCRIPT), *overrides], check=True, capture_output=True)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["metrics"]["held_out_psnr"] > 5 and found["metrics"]["held_out_drawn_bits_per_bit"] > 0
    assert found["progress"]["prior"]["steps"] > 0
    assert (tmp_path / "samples" / "grid.png").is_file()
