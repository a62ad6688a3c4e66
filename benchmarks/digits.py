"""How good is the demo, over seeds and with settings changed?  Prints a table and writes benchmarks/digits.json.

    python benchmarks/digits.py --seeds 0 1 2
    python benchmarks/digits.py --seeds 0 prior.evidence=false

Each row is one `bld demo` in a process of its own: seconds from start to end, samples recognised by an SVM trained on
the real digits, PSNR of held-out reconstructions, and the prior's bound on codes drawn of held-out images.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def one_demo(seed: int, overrides: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        command = [sys.executable, "-m", "bld", "demo", "--out", str(run), f"seed={seed}", *overrides]
        started = time.perf_counter()
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bits = [line["held_out_drawn_bits_per_bit"] for line in lines if "held_out_drawn_bits_per_bit" in line]
    return {
        "seed": seed,
        "settings": overrides,
        "seconds": round(seconds, 1),
        "recognised_percent": float(re.search(r": ([\d.]+)% of 500", out)[1]),  # type: ignore[index]
        "psnr_db": float(re.search(r"reconstructions: ([\d.]+) dB", out)[1]),  # type: ignore[index]
        "drawn_psnr_db": float(re.search(r"([\d.]+) dB from drawn codes", out)[1]),  # type: ignore[index]
        "drawn_bits_per_bit": round(bits[-1], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], metavar="SEED")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    args = parser.parse_args()
    seeds = [int(word) for word in args.seeds if "=" not in word]
    overrides = [*args.settings, *(word for word in args.seeds if "=" in word)]  # settings after the seeds
    rows = []
    print("seed      seconds recognised %      PSNR dB     bits/bit")
    for seed in seeds:
        row = one_demo(seed, overrides)
        rows.append(row)
        shown = (row[name] for name in ("seconds", "recognised_percent", "psnr_db", "drawn_bits_per_bit"))
        print(f"{seed:4}", *(f"{value:>12}" for value in shown), flush=True)
    path = Path(__file__).with_suffix(".json")
    before = json.loads(path.read_text()) if path.is_file() else []
    path.write_text(json.dumps([*before, *rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
