"""`benchmarks/host.py` on one preset: figures of every kind, and what a step asks for stays in its bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "host.py"


def test_the_host_script_measures_steps_of_a_preset_without_its_networks(tmp_path: Path):
    words = ["--presets", "cifar10", "bedrooms256-real", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True)
    rows = {row["preset"]: row for row in json.loads((tmp_path / "host.json").read_text())["rows"]}
    assert set(rows) == {"cifar10", "bedrooms256-real"}
    assert all(row[name] > 0 for row in rows.values() for name in row if name.endswith("(ms)"))
    assert 100 < rows["cifar10"]["asked"] <= 280  # each is a launch, of which a GPU's driver makes 200 in a millisecond
