"""Two real processes on gloo: the same training, the same images, and a lock that keeps a second command out."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bld.checkpoint import CheckpointStore
from bld.errors import SettingError
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder, RunInUseError

# Two channels a group, so that a convolution's bias before a GroupNorm has a gradient: where it has none, Adam scales
# rounding errors up to whole steps. Few bits, so that hardly ever one is drawn so close to the fence that rounding
# decides it: about 20,000 draws that differ by 1e-6 or less. No warm-up, so that 20 steps go somewhere.
WORDS = [
    "tokenizer.base_channels=64",
    "tokenizer.channel_multipliers=[1,1]",
    "tokenizer.embed_dim=8",
    "tokenizer.code_bits=4",
    "objective.adversarial=0.1",
    "objective.adversarial_ramp=0",
    "objective.discriminator_channels=64",
    "objective.discriminator_layers=1",
    "objective.code_entropy=0.1",
    "prior.dim=32",
    "prior.depth=2",
    "prior.heads=2",
    "codes.draws=2",
    "mixed_precision=float32",
    "data.held_out=100",
]
WORDS += [
    f"{stage}_training.{word}"
    for stage in ("tokenizer", "prior")
    for word in ("steps=20", "batch_size=16", "learning_rate=5e-4", "warmup_steps=0", "previews=1", "log_every_steps=5")
]


def torchrun(*words: object, processes: int = 2) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    return [*launcher, "-m", "bld", *map(str, words)]


def train(out: Path, *words: str) -> RunFolder:
    """In this process, alone."""
    run = RunFolder(out)
    Recipe(run.adopt("digits", [*WORDS, *words], "digits"), run, lambda _: None).train()
    return run


def launch(*words: object) -> None:
    done = subprocess.run(torchrun(*words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def relative_difference(a: RunFolder, b: RunFolder, part: str) -> float:
    """‖a - b‖ / ‖a‖ over all weights together."""
    mine, other = (load_file(run.path / part / "model.safetensors") for run in (a, b))
    assert mine.keys() == other.keys()
    return (
        float(sum((mine[k] - other[k]).square().sum() for k in mine) / sum(mine[k].square().sum() for k in mine)) ** 0.5
    )


def logged(run: RunFolder) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.read_metrics()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("two") / "run"
    launch("train", "--data", "digits", "--preset", "digits", "--out", out, *WORDS)
    return RunFolder(out)


def same_training(a: RunFolder, b: RunFolder) -> None:
    for part in ("tokenizer", "prior"):
        assert relative_difference(a, b, part) <= 1e-5
    for mine, other in zip(logged(a), logged(b), strict=True):
        assert mine == {k: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for k, v in other.items()}


def test_two_processes_train_what_one_trains_with_the_same_global_batch(alone: RunFolder, by_two: RunFolder):
    same_training(alone, by_two)
    assert (by_two.path / "report.html").is_file() and not (by_two.path / "lock.json").exists()


def test_two_processes_encode_what_one_encodes(alone: RunFolder, by_two: RunFolder):
    """Of 1,697 images one process takes a block of 1,024, the other the rest; few bits lie on the fence."""
    one, two = ((run.codes / "codes.bin").read_bytes() for run in (alone, by_two))
    different = sum((x ^ y).bit_count() for x, y in zip(one, two, strict=True))
    assert different <= 1e-4 * 8 * len(one)


def test_pieces_of_a_batch_one_after_the_other_train_what_the_whole_trains(tmp_path: Path, alone: RunFolder):
    pieces = train(
        tmp_path / "run",
        "tokenizer_training.accumulate=3",
        "prior_training.accumulate=3",
        "objective.code_entropy=0",
    )
    whole = train(tmp_path / "whole", "objective.code_entropy=0")
    same_training(whole, pieces)
    assert relative_difference(alone, whole, "tokenizer") > 1e-3  # the measure notices another objective


def test_networks_spread_over_two_processes_train_the_same_and_go_on(tmp_path: Path, alone: RunFolder):
    out = tmp_path / "run"
    words = [*WORDS, "tokenizer_training.decay=constant", "prior_training.decay=constant"]  # as the steps change
    half = [word.replace("steps=20", "steps=10") if word.endswith(".steps=20") else word for word in words]
    launch("train-tokenizer", "--out", out, "--data", "digits", "--preset", "digits", *half, "parallel=fsdp")
    launch("train", "--out", out, "parallel=fsdp", "tokenizer_training.steps=20", "prior_training.steps=20")
    whole = train(tmp_path / "whole", *words)
    for part in ("tokenizer", "prior"):
        assert relative_difference(whole, RunFolder(out), part) <= 1e-5


def test_two_processes_sample_the_images_that_one_samples(tmp_path: Path, by_two: RunFolder):
    options = ["--num-images", 5, "--steps", 4, "--batch-size", 2, "--precision", "float32"]
    launch("sample", by_two.path, "--out", tmp_path / "two", *options)
    command = [sys.executable, "-m", "bld", "sample", by_two.path, "--out", tmp_path / "one", *options]
    subprocess.run([str(word) for word in command], check=True, timeout=120, capture_output=True)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5 + 2  # and the grid, and the settings
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_killed_together_or_told_to_stop_two_processes_go_on_to_the_same_bits(tmp_path: Path, by_two: RunFolder):
    """The first is killed without warning, the second is told to stop, the third ends."""
    out = tmp_path / "run"
    often = "tokenizer_training.checkpoint_seconds=0"
    command = ["train-tokenizer", "--data", "digits", "--preset", "digits", "--out", out, *WORDS, often]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(torchrun(*command), stderr=subprocess.PIPE, text=True)
        store, deadline = CheckpointStore(out / "checkpoints" / "tokenizer"), time.monotonic() + 120
        before = len(RunFolder(out).read_metrics())
        while len(RunFolder(out).read_metrics()) <= before or not store.list():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        if number == signal.SIGKILL:
            for part in [*psutil.Process(process.pid).children(recursive=True), process]:
                part.kill()
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
    assert "goes on from the last checkpoint" in errors
    launch(*command)
    assert relative_difference(by_two, RunFolder(out), "tokenizer") == 0
    assert logged(RunFolder(out)) == [line for line in logged(by_two) if line["stage"] == "tokenizer"]


def test_a_second_command_in_the_folder_is_refused_and_a_crash_leaves_no_lock(tmp_path: Path, tiny_words: list[str]):
    run = RunFolder(tmp_path / "run")
    settings = run.adopt("digits", tiny_words, "digits")
    hold = f"import time, bld.training.run_folder as f; r = f.RunFolder({str(run.path)!r})\nwith r.locked():\n"
    holder = subprocess.Popen([sys.executable, "-c", hold + "    print('held', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunInUseError, match=rf"in use by another command \(process {holder.pid} on .*another --out"):
        Recipe(settings, RunFolder(run.path), lambda _: None).train()
    config = run.config.read_text()
    command = [sys.executable, "-m", "bld", "train", "--out", str(run.path), "prior.dim=64"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "in use by another command" in refused.stderr
    assert run.config.read_text() == config and not run.checkpoints("tokenizer").list()
    holder.kill()
    holder.wait()
    assert json.loads((run.path / "lock.json").read_text())["process"] == holder.pid  # it could not tidy up
    Recipe(settings, RunFolder(run.path), lambda _: None).train_tokenizer()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, tiny_words: list[str]):
    run = RunFolder(tmp_path / "run")
    words = [*tiny_words, "prior_training.accumulate=33"]
    with pytest.raises(SettingError, match=r"prior_training\.batch_size=32 .* 33 pieces .* set it to 33 or more"):
        Recipe(run.adopt("digits", words, "digits"), run, lambda _: None)


def test_means_over_processes_are_the_value_itself_alone():
    from bld.processes import mean_over_processes

    x = torch.randn(3, requires_grad=True)
    assert mean_over_processes(x) is x
