"""Everything that only a GPU can show, in one command of at most nine minutes.

    python benchmarks/gpu.py                  # on the machine with the GPU; needs jsonargparse and this repository
    python benchmarks/gpu.py --small          # the same on a CPU, small, in seconds: does every part run?
    python benchmarks/gpu.py --parts checks rates
    python benchmarks/gpu.py --train cifar10 --data cifar10-train.zip   # eight minutes; then emoji64 with its images

Each part runs in a process of its own under its own limit, and its lines are written to benchmarks/gpu.json as they
come, so that a cut leaves what was done.  A part that fails says so and stops no other.

    checks     draws, logits and samples agree with the CPU's; graphs, threads and inference mode; no step waits
    rates      matrix products, the denoiser's forward, training steps of both stages: seconds, and part of the peak
    images     Table 6: seconds per image at batch 1, images a second of large batches, decoding included
    cached     a step of the prior from the cache, against encoding its images again

`--train` trains a preset for eight minutes as a user would, and leaves the run, a sheet of samples and its metrics in
benchmarks/gpu-PRESET/.  Where jsonargparse is missing, carry its wheel and typeshed-client's, and name them in
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import DEVICE, machine, seconds
from steps import prior_run, stepping

from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.planning.budget import prior_step, tokenizer_step, training_flops
from bld.planning.cost import denoiser_flops, tokenizer_flops
from bld.priors import Denoiser
from bld.seeding import hashed_uniform, keyed_draws
from bld.tokenizer import BinaryAutoencoder
from bld.training.config import load_settings
from bld.training.late_numbers import LateNumbers
from bld.training.settings import Settings

OUT = Path(__file__).with_suffix(".json")
LIMITS = {"checks": 120, "rates": 200, "images": 120, "cached": 90}  # seconds
IS_GPU = DEVICE.type == "cuda"
SMALL = ["prior.dim=64", "prior.depth=2", "prior.heads=2", "tokenizer.base_channels=16", "tokenizer.image_size=32",
         "tokenizer.attention_resolutions=[]", "tokenizer.embed_dim=16", "objective.perceptual=0",
         "objective.adversarial=0", "tokenizer_training.batch_size=2", "prior_training.batch_size=4",
         "mixed_precision=bf16"]  # fmt: skip


def settings_of(preset: str, small: bool) -> Settings:
    return load_settings(preset, overrides=SMALL if small else ["mixed_precision=bf16"])


def median(call: Callable[[], Any], rounds: int) -> float:
    for _ in range(2):
        seconds(call)
    return sorted(seconds(call) for _ in range(rounds))[rounds // 2]


def half() -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(DEVICE.type, torch.bfloat16)


def pipeline(settings: Settings) -> BinaryLatentDiffusionPipeline:
    torch.manual_seed(0)
    diffusion, shape = settings.diffusion.build(), settings.tokenizer.code_shape
    prior = Denoiser(settings.denoiser(shape, 0), diffusion.evidence_logits())
    torch.nn.init.normal_(prior.head.weight, std=0.1)  # an untrained head knows nothing, and all would agree
    return BinaryLatentDiffusionPipeline(BinaryAutoencoder(settings.tokenizer), prior, diffusion)


# -- checks ------------------------------------------------------------------------------------------------


def checks(small: bool) -> Iterator[dict[str, Any]]:
    """Each a name and whether it holds, with the number that decides."""
    keys = keyed_draws(0, "gpu", range(64)).keys
    same = torch.equal(hashed_uniform(keys, 3, 10_001), hashed_uniform(keys.to(DEVICE), 3, 10_001).cpu())
    yield {"check": "draws are the CPU's, bit for bit", "holds": same}
    numbers = torch.arange(4.0, device=DEVICE)
    late = LateNumbers(numbers)
    numbers += 1
    holds = late.read().tolist() == [0, 1, 2, 3]
    yield {"check": "numbers read late are those of when they were asked for", "holds": holds}
    settings = settings_of("churches256", small=True)
    here, there = pipeline(settings), pipeline(settings).to(DEVICE)
    shape = settings.tokenizer.code_shape
    z = (hashed_uniform(keys[:4], 0, shape.bits).view(4, shape.positions, shape.c) < 0.5).to(torch.uint8)
    t = torch.tensor([1, 16, 40, 64])
    with torch.no_grad():
        cpu, device = here.prior(z, t), there.prior(z.to(DEVICE), t.to(DEVICE)).cpu()
    error = float((cpu - device).abs().max() / cpu.std())
    yield {"check": "float32 logits are the CPU's within 1e-3 of their spread", "holds": error < 1e-3, "error": error}
    codes = [pipe(8, generator=0, num_inference_steps=8, output_type="latent").codes for pipe in (here, there)]
    agree = float((codes[0] == codes[1].cpu()).float().mean())
    yield {"check": "99% of the bits of samples are the CPU's", "holds": agree > 0.99, "agree": agree}
    yield from _graphs(there, z.to(DEVICE), t.to(DEVICE))
    yield from _waiting(settings)


def _graphs(pipe: BinaryLatentDiffusionPipeline, z: torch.Tensor, t: torch.Tensor) -> Iterator[dict[str, Any]]:
    """A replayed network gives what the plain one gives: in inference mode, on two streams, in threads."""
    frozen = pipe.prior.for_inference()
    with torch.no_grad():
        wanted = frozen(z, t, None)
        for mode in (False, True):
            with torch.inference_mode(mode):
                sampler = frozen.for_sampling()
                outputs = [sampler(z, t, None).clone() for _ in range(6)]
            worst = max(float((out - wanted).abs().max()) for out in outputs)
            yield {"check": f"replays are exact, inference mode {mode}", "holds": worst < 1e-5, "error": worst}
    wrong: list[float] = []

    def call(seed: int) -> None:
        own = (torch.rand(z.shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(torch.uint8).to(DEVICE)
        stream = torch.cuda.Stream() if IS_GPU else None
        with torch.no_grad(), torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            for _ in range(8):
                wrong.append(float((frozen.for_sampling()(own, t, None) - frozen(own, t, None)).abs().max()))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holds = len(wrong) == 24 and max(wrong) < 1e-5
    yield {"check": "threads on their own streams replay their own inputs", "holds": holds, "calls": len(wrong)}


def _waiting(settings: Settings) -> Iterator[dict[str, Any]]:
    """A training step of the prior asks the GPU for no number."""
    with tempfile.TemporaryDirectory() as folder:
        step = stepping(prior_run(settings, Path(folder)))
        for _ in range(3):
            step()
        if IS_GPU:
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                step()
            found, said = True, ""
        except RuntimeError as error:
            found, said = False, str(error)[:300]
        finally:
            if IS_GPU:
                torch.cuda.set_sync_debug_mode("default")
    yield {"check": "a training step of the prior waits for nothing", "holds": found, "said": said}


# -- rates -------------------------------------------------------------------------------------------------


def rates(small: bool) -> Iterator[dict[str, Any]]:
    """Seconds, floating-point operations a second, and the part of what products of matrices reach."""
    n, rounds = (256, 3) if small else (8192, 10)
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * n**3 / median(lambda: a @ b, rounds)
    yield {"rate": "bf16 matrix products", "flops": peak, "of peak": 1.0}

    def row(name: str, flops: float, call: Callable[[], Any]) -> dict[str, Any]:
        took = median(call, rounds)
        return {"rate": name, "seconds": took, "flops": flops / took, "of peak": flops / took / peak}

    settings = settings_of("churches256", small)
    pipe, shape = pipeline(settings).to(DEVICE), settings.tokenizer.code_shape
    once = denoiser_flops("bernoulli", settings.denoiser(shape, 0))
    with half(), torch.no_grad():
        frozen = pipe.prior.for_inference()
        for batch in (1, 4) if small else (1, 8, 64, 256):
            z = torch.randint(0, 2, (batch, shape.positions, shape.c), dtype=torch.uint8, device=DEVICE)
            t = torch.full((batch,), 32, device=DEVICE)
            network = frozen.for_sampling()
            yield row(f"denoiser forward, batch {batch}", once * batch, lambda n=network, z=z, t=t: n(z, t, None))
        encode, decode = tokenizer_flops(settings.tokenizer)
        size, batch = settings.tokenizer.image_size, 2 if small else 16
        images = torch.rand(batch, 3, size, size, device=DEVICE) * 2 - 1
        codes = pipe.tokenizer.encode(images)
        yield row(f"tokenizer encodes {batch}", encode * batch, lambda: pipe.tokenizer.encode(images))
        yield row(f"tokenizer decodes {batch}", decode * batch, lambda: pipe.tokenizer.decode(codes))
    for preset in ("churches256", "imagenet256"):
        settings = settings_of(preset, small)
        step = prior_step(settings, DEVICE)
        with half():
            name = f"prior step of {preset}, batch {settings.prior_training.batch_size}"
            yield row(name, training_flops(settings, "prior"), step)
    settings = settings_of("churches256", small)
    step = tokenizer_step(settings, DEVICE)
    with half():
        name = f"tokenizer step, batch {settings.tokenizer_training.batch_size}, squared error alone"
        yield row(name, training_flops(settings, "tokenizer"), step)


# -- Table 6, and the cache --------------------------------------------------------------------------------


def images(small: bool) -> Iterator[dict[str, Any]]:
    """Seconds per image, codes and pixels."""
    pipe = pipeline(settings_of("churches256", small)).to(DEVICE)
    for batch, counts in ((1, (16, 64)), (4 if small else 256, (16,))):
        for steps in counts:
            with half():
                took = median(
                    lambda b=batch, n=steps: pipe(
                        b, num_inference_steps=n, generator=0, batch_size=b, output_type="pt"
                    ),
                    3,
                )
            yield {"batch": batch, "steps": steps, "seconds per image": took / batch, "images per second": batch / took}


def cached(small: bool) -> Iterator[dict[str, Any]]:
    """A training step of the prior, and the same with its images encoded before it."""
    settings = settings_of("churches256", small)
    tokenizer = BinaryAutoencoder(settings.tokenizer).to(DEVICE).eval()
    batch, size = settings.prior_training.batch_size, settings.tokenizer.image_size
    pixels = torch.rand(batch, 3, size, size, device=DEVICE) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        step = stepping(prior_run(settings, Path(folder)))

        def online() -> None:
            with half():
                tokenizer.encode(pixels)
            step()

        took = {"cached": median(step, 5), "online": median(online, 5)}
    yield {"seconds": took, "online over cached": took["online"] / took["cached"]}


# -- a training ----------------------------------------------------------------------------------------


def train(preset: str, data: str, budget: str, out: Path) -> None:
    """Train, draw a sheet of samples, and write what was measured; the same command again goes on."""
    run = out / "run"
    bld = [sys.executable, "-m", "bld"]
    subprocess.run(
        [*bld, "train", "--data", data, "--preset", preset, "--budget", budget, "--out", str(run)], check=True
    )
    begun = time.perf_counter()
    subprocess.run([*bld, "sample", str(run), "--num", "100", "--out", str(out / "samples")], check=True)
    seconds = time.perf_counter() - begun
    last: dict[str, Any] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        last |= {key: value for key, value in json.loads(line).items() if key.startswith("held_out")}
    progress = json.loads((run / "progress.json").read_text())
    found = {**machine(), "budget": budget, "metrics": last, "progress": progress}
    found["seconds of bld sample --num 100, from start to end"] = seconds
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(last))


# -- parts -------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[bool], Iterator[dict[str, Any]]]] = {
    "checks": checks, "rates": rates, "images": images, "cached": cached,
}  # fmt: skip


def run(part: str, small: bool, out: Path) -> None:
    """A part in a process of its own; each line it prints is kept at once."""
    words = [sys.executable, __file__, "--part", part, *(["--small"] if small else [])]
    begun, lines = time.monotonic(), []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(LIMITS[part], process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                lines.append(json.loads(line))
                keep(out, part, lines, "cut off", begun)
                print(part, line.strip(), flush=True)
        timer.cancel()
    ended = "done" if process.returncode == 0 else f"ended with {process.returncode}"
    keep(out, part, lines, ended, begun)
    print(f"{part}: {ended}, {time.monotonic() - begun:.0f} s", flush=True)


def keep(out: Path, part: str, lines: list[dict[str, Any]], state: str, begun: float) -> None:
    kept = json.loads(out.read_text()) if out.is_file() else {}
    kept |= {**machine(), part: {"state": state, "seconds": round(time.monotonic() - begun, 1), "lines": lines}}
    out.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--train", metavar="PRESET", help="train this preset, in place of the parts")
    parser.add_argument("--data", default="digits", help="its images")
    parser.add_argument("--budget", default="8m", help="its time")
    args = parser.parse_args()
    if args.train:
        train(args.train, args.data, args.budget, args.out if args.out != OUT else OUT.with_name(f"gpu-{args.train}"))
        return
    if args.part:
        for line in PARTS[args.part](args.small):
            print(json.dumps(line), flush=True)
        return
    for part in args.parts:
        run(part, args.small, args.out)


if __name__ == "__main__":
    main()
