"""Two real processes on gloo: the same training, the same images, and a lock that keeps a second command out."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bld.errors import SettingError
from bld.training.checkpoints import CheckpointStore
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder, RunInUseError
from forked import fork

PATIENCE = 600  # seconds after which a process counts as hung, however slow the machine

# What several processes compute differs from what one computes by rounding alone, so long as no value lies within
# rounding of a kink: the sign of an error (L1), a hinge, a drawn bit's fence.  In four steps hardly any does (about one
# training of a hundred); of twenty steps every third training has met one and is off by 1e-5, by 1e-4 if a bit has
# flipped.  So trainings are compared over four steps.  Measured with AVX2 and AVX-512, one thread and three: weights
# differ by at most 1e-6, logged values by 3e-6; the least of `FAULTS` is off by 4e-4 in one of the two.
# Two channels a group, so that a convolution's bias before a GroupNorm has a gradient: where it has none, Adam scales
# rounding errors up to whole steps.  No warm-up and no decay, so that four steps go somewhere; bit noise and flips are
# annealed too, and would tell a training in two halves from a whole one.
WEIGHTS_DIFFER, LOGGED_DIFFER = 1e-5, 5e-5
OVERRIDES = [
    "tokenizer.base_channels=64",
    "tokenizer.channel_multipliers=[1,1]",
    "tokenizer.embed_dim=8",
    "tokenizer.code_bits=4",
    "tokenizer.bit_noise=1",
    "objective.bit_flips=0",
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
OVERRIDES += [
    f"{stage}_training.{word}"
    for stage in ("tokenizer", "prior")
    for word in (
        "steps=4",
        "batch_size=16",
        "learning_rate=5e-4",
        "warmup_steps=0",
        "decay=constant",
        "previews=1",
        "log_every_steps=1",
    )
]


# What goes wrong in silence when gradients are not joined as they should be; each process runs it first.
FAULTS = {
    "nothing is averaged": "loop.prepared = lambda accelerator, network, parallel: network",
    "one network is not averaged": (
        "real, seen = loop.prepared, []\n"
        "loop.prepared = lambda *a: seen.append(a) or (a[1] if len(seen) == 2 else real(*a))"
    ),
    "one bias is not averaged": (
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "real = loop.prepared\n"
        "def prepared(accelerator, network, parallel):\n"
        "    DDP._set_params_and_buffers_to_ignore_for_model(network, [list(dict(network.named_parameters()))[-1]])\n"
        "    return real(accelerator, network, parallel)\n"
        "loop.prepared = prepared"
    ),
}


def torchrun(*words: object, script: Path | None = None) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return [*launcher, *(["-m", "bld"] if script is None else [str(script)]), *map(str, words)]


def program(before: str) -> str:
    """`bld` as a script that first runs some code."""
    return (
        f"import sys, torch\nimport bld.training.loop as loop\n{before}\nfrom bld.cli import main\nmain(sys.argv[1:])\n"
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train(out: Path, *overrides: str) -> RunFolder:
    """In this process, alone."""
    run = RunFolder(out)
    Recipe(run.adopt("digits", [*OVERRIDES, *overrides], "digits"), run, lambda _: None).train()
    return run


def pair(code: str, *words: object) -> tuple[list[int], str]:
    """(exit statuses, what was said) of a script in two processes that find each other as torchrun's do."""
    around = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        started = [
            fork(code, words, {**around, "RANK": rank, "LOCAL_RANK": rank}, Path(folder) / rank) for rank in ("0", "1")
        ]
        ended = [process.ended(PATIENCE) for process in started]
        return ended, "\n".join(process.said() for process in started)


def launch(*words: object, before: str = "") -> None:
    """`bld` in two processes; `before` is code that each runs first."""
    ended, said = pair(program(before), *words)
    assert ended == [0, 0], said


def without_prior(run: RunFolder, folder: Path) -> RunFolder:
    """The run as it was before its prior: priors are compared on the same codes, for one flipped bit is no rounding."""
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "prior")
    shutil.rmtree(folder / "checkpoints" / "prior")
    done = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({stage: done[stage] for stage in done if stage != "prior"}))
    return RunFolder(folder)


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
    command = torchrun("train", "--data", "digits", "--preset", "digits", "--out", out, *OVERRIDES)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return RunFolder(out)


def is_same_training(a: RunFolder, b: RunFolder, stage: str) -> bool:
    ours, theirs = ([line for line in logged(run) if line["stage"] == stage] for run in (a, b))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    return relative_difference(a, b, stage) <= WEIGHTS_DIFFER and all(
        mine[key] == (pytest.approx(value, rel=LOGGED_DIFFER) if isinstance(value, float) else value)
        for mine, other in zip(ours, theirs, strict=True)
        for key, value in other.items()
    )


def test_two_processes_train_the_tokenizer_that_one_trains_with_the_same_global_batch(
    alone: RunFolder, by_two: RunFolder
):
    assert is_same_training(alone, by_two, "tokenizer")
    assert (by_two.path / "report.html").is_file() and not (by_two.path / "lock.json").exists()


def test_two_processes_train_the_prior_that_one_trains(tmp_path: Path, alone: RunFolder):
    run = without_prior(alone, tmp_path / "run")
    launch("train-prior", "--out", run.path)
    assert is_same_training(alone, run, "prior")


def test_two_processes_encode_what_one_encodes(alone: RunFolder, by_two: RunFolder):
    """Of 1,697 images one process takes a block of 1,024, the other the rest; few bits lie on the fence."""
    one, two = ((run.codes / "codes.bin").read_bytes() for run in (alone, by_two))
    different = sum((x ^ y).bit_count() for x, y in zip(one, two, strict=True))
    assert different <= 1e-4 * 8 * len(one)


def test_pieces_of_a_batch_one_after_the_other_train_what_the_whole_trains(tmp_path: Path, alone: RunFolder):
    pieces = train(tmp_path / "run", "tokenizer_training.accumulate=3", "objective.code_entropy=0")
    whole = train(tmp_path / "whole", "objective.code_entropy=0")
    assert is_same_training(whole, pieces, "tokenizer")
    assert relative_difference(alone, whole, "tokenizer") > 10 * WEIGHTS_DIFFER  # the measure notices another objective
    prior = without_prior(whole, tmp_path / "prior")
    Recipe(prior.adopt(None, ["prior_training.accumulate=3"], None), prior, lambda _: None).train_prior()
    assert is_same_training(whole, prior, "prior")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_processes_share_is_seen(tmp_path: Path, alone: RunFolder, fault: str):
    out = tmp_path / "run"
    launch("train-tokenizer", "--data", "digits", "--preset", "digits", "--out", out, *OVERRIDES, before=FAULTS[fault])
    assert not is_same_training(alone, RunFolder(out), "tokenizer")


def test_a_tokenizer_spread_over_two_processes_trains_the_same_and_goes_on(tmp_path: Path, alone: RunFolder):
    out = tmp_path / "run"
    half = [word.replace("steps=4", "steps=2") if word.endswith(".steps=4") else word for word in OVERRIDES]
    launch("train-tokenizer", "--out", out, "--data", "digits", "--preset", "digits", *half, "parallel=fsdp")
    launch("train-tokenizer", "--out", out, "parallel=fsdp", "tokenizer_training.steps=4", "prior_training.steps=4")
    assert relative_difference(alone, RunFolder(out), "tokenizer") <= WEIGHTS_DIFFER


def test_a_prior_spread_over_two_processes_trains_the_same(tmp_path: Path, alone: RunFolder):
    run = without_prior(alone, tmp_path / "run")
    launch("train-prior", "--out", run.path, "parallel=fsdp")
    assert is_same_training(alone, run, "prior")


def test_two_processes_sample_the_images_that_one_samples(tmp_path: Path, by_two: RunFolder):
    options = ["--num-images", 5, "--steps", 4, "--batch-size", 2, "--precision", "float32"]
    launch("sample", by_two.path, "--out", tmp_path / "two", *options)
    command = [sys.executable, "-m", "bld", "sample", by_two.path, "--out", tmp_path / "one", *options]
    subprocess.run([str(word) for word in command], check=True, timeout=PATIENCE, capture_output=True)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5 + 2  # and the grid, and the settings
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_killed_together_or_told_to_stop_two_processes_go_on_to_the_same_bits(tmp_path: Path, by_two: RunFolder):
    """After two steps both are killed without warning; then torchrun is told to stop, one step before the last."""
    out = tmp_path / "run"
    words = ["train-tokenizer", "--data", "digits", "--preset", "digits", "--out", out, *OVERRIDES]
    words += ["tokenizer_training.checkpoint_seconds=0"]
    with pytest.raises(AssertionError, match=r"\[-9, -9\]"):
        launch(*words, before=at_checkpoint(3, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert [line["step"] for line in logged(RunFolder(out))] == [1, 2]
    script = tmp_path / "told.py"
    tell = "self.processes.is_main and os.kill(os.getppid(), signal.SIGTERM)\n        while not told: time.sleep(0.01)"
    script.write_text(program(at_checkpoint(1, tell)))
    stopped = subprocess.run(torchrun(*words, script=script), capture_output=True, text=True, timeout=PATIENCE)
    assert stopped.returncode != 0 and "goes on from the last checkpoint" in stopped.stderr
    assert CheckpointStore(out / "checkpoints" / "tokenizer").latest(lambda _: None).step == 3
    launch(*words)
    assert relative_difference(by_two, RunFolder(out), "tokenizer") == 0
    assert logged(RunFolder(out)) == [line for line in logged(by_two) if line["stage"] == "tokenizer"]


def at_checkpoint(count: int, then: str) -> str:
    """Code that does something in each process as soon as it has written so many checkpoints."""
    return f"""import os, signal, time
real, ask, saved, told = loop.StageRun.checkpoint, loop.StopSignals._ask, [], []
def checkpoint(self, log):
    real(self, log)
    saved.append(self.step)
    self.processes.wait()
    if len(saved) == {count}:
        {then}
loop.StageRun.checkpoint = checkpoint
loop.StopSignals._ask = lambda self, *a: told.append(ask(self, *a))"""


def test_a_second_command_in_the_folder_is_refused_and_a_crash_leaves_no_lock(
    tmp_path: Path, tiny_overrides: list[str]
):
    run = RunFolder(tmp_path / "run")
    settings = run.adopt("digits", tiny_overrides, "digits")
    hold = f"import time, bld.training.run_folder as f; r = f.RunFolder({str(run.path)!r})\nwith r.locked():\n"
    holder = subprocess.Popen([sys.executable, "-c", hold + "    print('held', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunInUseError, match=rf"in use by another command \(process {holder.pid} on .*another --out"):
        Recipe(settings, RunFolder(run.path), lambda _: None).train()
    config = run.config.read_text()
    command = [sys.executable, "-m", "bld", "train", "--out", str(run.path), "prior.dim=64"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert refused.returncode == 2 and "in use by another command" in refused.stderr
    assert run.config.read_text() == config and not run.checkpoints("tokenizer").list()
    holder.kill()
    holder.wait()
    assert json.loads((run.path / "lock.json").read_text())["process"] == holder.pid  # it could not tidy up
    Recipe(settings, RunFolder(run.path), lambda _: None).train_tokenizer()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, tiny_overrides: list[str]):
    run = RunFolder(tmp_path / "run")
    overrides = [*tiny_overrides, "prior_training.accumulate=33"]
    with pytest.raises(SettingError, match=r"prior_training\.batch_size=32 .* 33 pieces .* set it to 33 or more"):
        Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None)


def test_means_over_processes_are_the_value_itself_alone():
    from bld.runtime.distributed import mean_over_processes

    x = torch.randn(3, requires_grad=True)
    assert mean_over_processes(x) is x


def test_a_codebook_stands_still_everywhere_where_one_process_has_features_that_are_not_finite(tmp_path: Path):
    """Else one process would wait for means that the other does not send, and the two would part."""
    pytest.importorskip("vector_quantize_pytorch")
    _, said = pair(
        "import datetime, torch, torch.distributed as dist\n"
        "from bld.tokenizer.bottlenecks.vq import VectorQuantised\n"
        "dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=60))\n"
        "torch.manual_seed(0)\n"
        "codebook = VectorQuantised(3, 2).train()\n"
        "seen = [codebook.quantiser.codebook.clone()]\n"
        "for step in range(3):\n"
        "    features = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(10 * dist.get_rank() + step))\n"
        "    if dist.get_rank() == step == 1:\n"
        "        features[0, 0, 0, 0] = torch.nan\n"
        "    codebook(features)\n"
        "    both = [torch.empty_like(seen[0]) for _ in range(2)]\n"
        "    dist.all_gather(both, codebook.quantiser.codebook.contiguous())\n"
        "    assert torch.equal(*both)\n"
        "    seen.append(both[0])\n"
        "assert [torch.equal(a, b) for a, b in zip(seen, seen[1:])] == [False, True, False]\n"
        f"open({str(tmp_path / 'stood-')!r} + str(dist.get_rank()), 'w').close()\n"
        "dist.barrier()\n"  # none leaves while another still talks to it
        "dist.destroy_process_group()\n"
    )
    # Not its exit status: after all is done, one of eight such processes is aborted by torch's own threads.
    assert all((tmp_path / f"stood-{rank}").exists() for rank in range(2)), said


@pytest.mark.parametrize("joined", ["processes.launched()", "make_accelerator('float32')"])
def test_who_waits_for_another_is_patient(joined):
    """The group's limit is ours (a day) however the processes meet; here it is two seconds, so that it can be seen."""
    ended, said = pair(
        "import datetime, sys, time\n"
        "import bld.runtime.distributed as processes, bld.training.accelerator as accelerator\n"
        "from bld.training.accelerator import make_accelerator\n"
        "assert processes.PATIENCE >= datetime.timedelta(hours=12)\n"
        "processes.PATIENCE = accelerator.PATIENCE = datetime.timedelta(seconds=2)\n"
        f"{joined}\n"
        "alone = processes.launched()\n"
        "alone.wait()\n"
        "if alone.is_main:\n"
        "    time.sleep(4)\n"
        "alone.wait()\n"
    )
    assert ended != [0, 0] and "imed out" in said
