"""Kills training again and again, goes on with the same command, and compares with a run that was never killed.

    python benchmarks/torture.py --kills 20 --out benchmarks/torture.json

Every stage (tokenizer, encode, prior), on one process and on two: each time the command has taken the run's folder it
is killed (SIGKILL, all of its processes) at a moment drawn between then and a few seconds later: while it opens images,
loads a checkpoint, trains, saves or finishes.  A stage that ends before it was killed often enough is begun again.
Counted: kills, rounds that ended; images lost, which is steps missing from or repeated in the log times the batch; and
the largest difference of any weight (of the codes: of any byte).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors.torch import load_file

BATCH = 32
OVERRIDES = [
    "mixed_precision=float32",
    "data.held_out=100",
    "codes.draws=2",
    "tokenizer.base_channels=16",
    "tokenizer.embed_dim=16",
    "prior.dim=64",
    "prior.depth=2",
    "prior.heads=2",
    *(
        f"{stage}_training.{word}"
        for stage in ("tokenizer", "prior")
        for word in (f"batch_size={BATCH}", "previews=2", "log_every_steps=1", "checkpoint_seconds=0.2")
    ),
]
SUBCOMMAND = {"tokenizer": "train-tokenizer", "encode": "encode", "prior": "train-prior"}


def command(stage: str, processes: int, out: Path, overrides: list[str]) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        port = random.randint(20000, 50000)
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    return [
        *launcher,
        "-m",
        "bld",
        SUBCOMMAND[stage],
        "--data",
        "digits",
        "--preset",
        "digits",
        "--out",
        str(out),
        *overrides,
    ]


def run(words: list[str], log: Path, kill_after: float | None = None, lock: Path | None = None) -> bool:
    """Start a command, and kill it so many seconds after it took the folder; whether it ended by itself, well."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    with log.open("a") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=env)
        if kill_after is not None and lock is not None:
            while not lock.exists() and process.poll() is None:
                time.sleep(0.01)
            deadline = time.monotonic() + kill_after
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.005)
            if process.poll() is None:
                for part in [*psutil.Process(process.pid).children(recursive=True), process]:
                    part.kill()
                process.wait()
                lock.unlink(missing_ok=True)  # only its note: the lock itself died with the process
                return False
        if process.wait() != 0:
            raise SystemExit(f"The command failed; its output is in {log}:\n{log.read_text()[-2000:]}")
        return True


def logged(out: Path, stage: str) -> list[dict]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["stage"] == stage]


def compare(stage: str, whole: Path, out: Path, steps: int) -> tuple[int, float]:
    """(images lost or seen twice, largest difference)."""
    if stage == "encode":
        one, two = (np.fromfile(run / "codes" / "codes.bin", np.uint8) for run in (whole, out))
        return 0 if len(one) == len(two) else abs(len(one) - len(two)), float((one != two).max())
    a, b = (load_file(run / stage / "model.safetensors") for run in (whole, out))
    worst = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    trained = [line["step"] for line in logged(out, stage) if "loss" in line]
    lost = len(set(range(1, steps + 1)) ^ set(trained)) + len(trained) - len(set(trained))
    if logged(whole, stage) != logged(out, stage):
        raise SystemExit(f"The logs of {whole} and {out} differ.")
    return lost * BATCH, worst


def torture(stage: str, processes: int, kills: int, steps: int, folder: Path, seed: int) -> dict:
    overrides = [*OVERRIDES, f"{stage}_training.steps={steps}"] if stage != "encode" else OVERRIDES
    draw = random.Random(f"{seed}/{stage}/{processes}")
    start, whole = folder / f"start-{stage}-{processes}", folder / f"whole-{stage}-{processes}"
    log = folder / f"{stage}-{processes}.log"
    start.mkdir()
    if stage != "tokenizer":
        run(command("tokenizer", 1, start, [*overrides, "tokenizer_training.steps=5"]), log)
    if stage == "prior":
        run(command("encode", 1, start, []), log)
    shutil.copytree(start, whole)
    began = time.monotonic()
    run(command(stage, processes, whole, overrides), log)
    longest = min(4.0, time.monotonic() - began)
    done = {"kills": 0, "rounds": 0, "images_lost": 0, "largest_difference": 0.0}
    while done["kills"] < kills:
        out = folder / f"killed-{stage}-{processes}"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(start, out)
        last = 0
        while not run(
            command(stage, processes, out, overrides),
            log,
            draw.uniform(0, longest) if done["kills"] < kills else None,
            out / "lock.json",
        ):
            done["kills"] += 1
            last += 1
        lost, worst = compare(stage, whole, out, steps)
        done["rounds"] += 1
        done["images_lost"] += lost
        done["largest_difference"] = max(done["largest_difference"], worst)
    return {"stage": stage, "processes": processes, **done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(SUBCOMMAND))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in args.stages:
            for processes in args.processes:
                rows.append(torture(stage, processes, args.kills, args.steps, Path(folder), args.seed))
                row = rows[-1]
                print(
                    f"{row['stage']:<10} {row['processes']} processes: survived {row['kills']}/{row['kills']} kills in "
                    f"{row['rounds']} rounds, {row['images_lost']} images lost, largest difference "
                    f"{row['largest_difference']:g}",
                    flush=True,
                )
    if args.out:
        entries = {"torch": torch.__version__, "seed": args.seed, "steps": args.steps, "rows": rows}
        args.out.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
