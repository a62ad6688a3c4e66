"""How good are the pictures of a recipe, for the same images and the same seconds of training?

    python benchmarks/quality.py judge   --work WORK --data TRAIN.zip --test TEST.zip
    python benchmarks/quality.py measure --work WORK cifar10-base cifar10-decisive
    python benchmarks/quality.py train   --work WORK --data … --test … --minutes 16 20 cifar10-base
    python benchmarks/quality.py sample  --work WORK --test … --minutes 16 20 cifar10-base --guidance 4 --temperature 1
    python benchmarks/quality.py table

`judge` trains the classifier that judges all: its features make the distances, its answers say whether a sample is
recognised as its class; nothing else is ever trained on it.  `measure` times both training steps of each recipe in
turn on an otherwise idle machine; `train` then gives each as many steps as its minutes (tokenizer, prior) hold at that
pace, so that what else runs beside a training changes nothing; `sample` judges a trained one at other guidance,
temperature or steps.  Every part goes on where it was stopped.  Metrics go into benchmarks/quality/results.json with
machine and commit, sheets of samples and reconstructions into WORK.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from measuring import DEVICE, machine

from bld.data import ImageSet, Preprocessing, make_grid, psnr, save_png
from bld.data.values import to_uint8
from bld.evaluation.features import ClassifierFeatures, SmallResNet, load_extractor
from bld.evaluation.metrics.distances import extract, frechet_distance
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.planning.budget import prior_step, tokenizer_step
from bld.runtime.processor import device_name
from bld.seeding import derive_seed, keyed_draws, keyed_permutation
from bld.serialization.models import load_tokenizer
from bld.training.accelerator import autocast_dtype
from bld.training.config import load_settings
from bld.training.settings import Settings
from bld.training.stages.prior import DRAWN_BOUND, PROBABLE_BOUND

FOLDER = Path(__file__).parent / "quality"
RESULTS = FOLDER / "results.json"
JUDGED = 2000
SAMPLED = ((16, 1.0), (16, 2.0), (16, 4.0), (8, 1.0), (64, 1.0))  # (steps, guidance), the most telling first
FEWEST = 300  # the first, to compare with what takes long to sample
TEMPERATURE = 0.9  # the paper's
FEWER = 1000  # samples where steps are not 16, and to compare with, the first of those where they are


def recipe(name: str) -> tuple[str, list[str]]:
    entry = yaml.safe_load((FOLDER / "recipes.yaml").read_text())[name]
    return entry["preset"], entry.get("overrides", [])


def settings_of(name: str) -> Settings:
    preset, overrides = recipe(name)
    return load_settings(preset, overrides=overrides)


def opened(location: str, size: int) -> ImageSet:
    return ImageSet.open(location, Preprocessing(size), progress=False, verify=False, memory_limit_bytes=2**31)


# -- the judge ---------------------------------------------------------------------------------------------


def train_judge(work: Path, data: str, test: str, epochs: int, size: int = 32, width: int = 32) -> None:
    """A residual network, mirrored and shifted images, one cycle of the rate; a checkpoint each epoch."""
    train = opened(data, size)
    pixels = torch.cat([train.uint8_centre(part) for part in torch.arange(len(train)).split(1000)])
    padded = F.pad(pixels.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    torch.manual_seed(derive_seed(0, "judge"))
    network = SmallResNet(size, len(train.classes), width)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    batch, at, state = 128, 0, work / "judge.pt"
    each = len(train) // batch
    if state.is_file():
        saved = torch.load(state)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        at = saved["epoch"]
    for epoch in range(at, epochs):
        order = torch.from_numpy(keyed_permutation(0, "judge", epoch, len(train)).copy())
        draws = torch.Generator().manual_seed(derive_seed(0, "judge-views", epoch))
        begun, total = time.time(), 0.0
        for i in range(each):
            done = (epoch * each + i) / (epochs * each)
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1, done / 0.2) * (1 if done < 0.2 else (1 - done) / 0.8)
            rows = order[i * batch : (i + 1) * batch]
            x = padded[rows]
            top, left = torch.randint(0, 9, (2,), generator=draws).tolist()
            x = x[:, :, top : top + size, left : left + size]
            mirrored = torch.rand(batch, generator=draws) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x).float() / 127.5 - 1
            loss = F.cross_entropy(network(x)[1], train.labels[rows], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        torch.save(
            {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1},
            state.with_suffix(".new"),
        )
        state.with_suffix(".new").replace(state)
        print(f"judge, epoch {epoch + 1} of {epochs}: loss {total / each:.3f}, {time.time() - begun:.0f} s", flush=True)
    fields = {"data": Path(data).stem, "image_size": size, "classes": train.classes, "width": width, "epochs": epochs}
    judge = ClassifierFeatures(network, {**fields, "held_out_accuracy": 0.0})
    images = opened(test, size)
    logits = extract((images.uint8_centre(p) for p in torch.arange(len(images)).split(500)), judge).logits
    accuracy = float((logits.argmax(1) == images.labels).float().mean())
    ClassifierFeatures(network, {**fields, "held_out_accuracy": accuracy}).save(work / "judge")
    print(f"The judge recognises {100 * accuracy:.1f}% of the test images.")


# -- how many steps the minutes hold -----------------------------------------------------------------------


def measure(work: Path, names: list[str], rounds: int = 5) -> None:
    """Seconds of each stage's step in the run's precision, the recipes in turn: medians of rounds, to paces.json."""
    cpu = torch.device("cpu")
    half = {"bf16": torch.bfloat16}.get(autocast_dtype("auto", cpu))
    builders = {"tokenizer": tokenizer_step, "prior": prior_step}
    calls = {(name, stage): build(settings_of(name), cpu) for name in names for stage, build in builders.items()}
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, call in calls.items():
            begun = time.perf_counter()
            with torch.autocast("cpu", half, enabled=half is not None):
                call()
                call()
            if turn:
                taken[key].append((time.perf_counter() - begun) / 2)
    path = work / "paces.json"
    paces = json.loads(path.read_text()) if path.is_file() else {}
    for (name, stage), seconds in taken.items():
        paces[name] = {**paces.get(name, {}), "machine": device_name(DEVICE), stage: statistics.median(seconds)}
        each = f"{1000 * statistics.median(seconds):7.0f} ms ({min(seconds):.3f} … {max(seconds):.3f} s)"
        print(f"{name:26} {stage:10} {each}")
    path.write_text(json.dumps(paces, indent=2))


# -- training and judging ----------------------------------------------------------------------------------


def train(args: argparse.Namespace, name: str) -> None:
    pace = json.loads((args.work / "paces.json").read_text())[name]
    assert pace["machine"] == device_name(DEVICE), (
        f"{name} was timed on {pace['machine']}, and this is {device_name(DEVICE)}: measure again."
    )
    steps = {stage: round(60 * m / pace[stage]) for stage, m in zip(("tokenizer", "prior"), args.minutes, strict=True)}
    run = folder_of(args, name)
    preset, overrides = recipe(name)
    overrides = [
        *overrides, f"seed={args.seed}", "data.held_out=1000",
        f"tokenizer_training.steps={steps['tokenizer']}", f"prior_training.steps={steps['prior']}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "bld", "train", "--data", args.data, "--out", str(run)]
    command += [] if (run / "config.yaml").is_file() else ["--preset", preset]
    subprocess.run([*command, *overrides], check=True)
    row = {
        "recipe": name, "minutes": args.minutes, "seed": args.seed, "steps": steps, "pace": pace, "words": overrides,
        "commit": commit(), **machine(),
    }  # fmt: skip
    for metrics in judged(run, args):
        row |= metrics
        keep(row)
        print(json.dumps(metrics), flush=True)


def folder_of(args: argparse.Namespace, name: str) -> Path:
    return args.work / "runs" / f"{name}-{args.minutes[0]:g}-{args.minutes[1]:g}-seed{args.seed}"


def judged(run: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Metrics, as they come."""
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(run)
    judge, real = load_extractor(str(args.work / "judge")), test_images(args, pipe.image_size)
    seen = extract(real.split(250), judge).features
    yield {"judge": judge.accuracy, **reconstructed(pipe, real, seen, judge, run), **bits(run)}
    wanted = SAMPLED if pipe.diffusion.may_skip else [(None, guidance) for _, guidance in SAMPLED[:2]]
    yield from sampled(pipe, judge, seen, run, args.seed, wanted)


def test_images(args: argparse.Namespace, size: int) -> torch.Tensor:
    """Some of the test images, always the same, uint8."""
    images = opened(args.test, size)
    rows = torch.from_numpy(keyed_permutation(0, "quality-test", 0, len(images))[:JUDGED].copy())
    return torch.cat([images.uint8_centre(part) for part in rows.split(250)])


def sample(args: argparse.Namespace, name: str) -> None:
    """Add what samples of a trained run measure at other guidance to its row."""
    run = folder_of(args, name)
    mine = {"recipe": name, "minutes": args.minutes, "seed": args.seed, "device": device_name(DEVICE)}
    row = next(row for row in json.loads(RESULTS.read_text()) if all(row[key] == mine[key] for key in mine))
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(run)
    judge = load_extractor(str(args.work / "judge"))
    seen = extract(test_images(args, pipe.image_size).split(250), judge).features
    for temperature in args.temperature:
        wanted = [(steps, guidance) for steps in args.steps for guidance in args.guidance]
        for metrics in sampled(pipe, judge, seen, run, args.seed, wanted, temperature):
            row |= metrics
            keep(row)
            print(json.dumps(metrics), flush=True)


def sampled(
    pipe: Any,
    judge: Any,
    seen: torch.Tensor,
    run: Path,
    seed: int,
    wanted: Sequence[tuple[int | None, float]],
    temperature: float = TEMPERATURE,
) -> Iterator[dict[str, Any]]:
    """Distance and recognised share of samples at each of the (steps, guidance), and a sheet of them."""
    classes = len(pipe.classes)
    for asked, guidance in wanted:
        if guidance != 1 and not classes and pipe.guide is None:
            continue
        steps, count = asked or pipe.diffusion.steps, JUDGED if asked in (16, None) else FEWER
        labels = [i % classes for i in range(count)] if classes else None
        begun, parts = time.perf_counter(), []
        for start in range(0, count, 100):
            made = pipe(
                100, class_labels=labels and labels[start : start + 100], num_inference_steps=asked,
                guidance_scale=guidance, temperature=temperature,
                generator=seed, first_index=start, batch_size=100, output_type="pt",
            ).images  # fmt: skip
            parts.append(to_uint8(made * 2 - 1))
        seconds = time.perf_counter() - begun
        samples = torch.cat(parts)
        table = extract(samples.split(250), judge)
        key = f"steps{steps}-guidance{guidance:g}"
        key += "" if temperature == TEMPERATURE else f"-temperature{temperature:g}"
        sheet(samples[:100].float() / 127.5 - 1, run / f"{key}.png")
        found = {"fd": frechet_distance(table.features, seen)}
        if labels and judge.classes == pipe.classes:
            found["recognised"] = float((table.logits.argmax(1) == torch.tensor(labels)).float().mean())
        found |= {f"fd_of_{n}": frechet_distance(table.features[:n], seen) for n in (FEWER, FEWEST) if n < count}
        yield {key: {**found, "samples": count, "seconds_per_sample": seconds / count}}


@torch.no_grad()
def reconstructed(pipe: Any, real: torch.Tensor, seen: torch.Tensor, judge: Any, run: Path) -> dict[str, Any]:
    """PSNR and rFD of thresholded and of drawn codes, and of drawn codes with a twentieth of their bits turned over."""
    tokenizer, found = pipe.tokenizer.eval(), {}
    x = real.float() / 127.5 - 1
    shown = []
    for kind in ("thresholded", "drawn", "flipped"):
        parts = []
        for start in range(0, len(x), 100):
            numbers = range(start, min(start + 100, len(x)))
            draws = None if kind == "thresholded" else keyed_draws(0, "quality-codes", numbers)
            codes = tokenizer.encode(x[start : numbers.stop], draws)
            if kind == "flipped":
                turned = torch.rand(codes.shape, generator=torch.Generator().manual_seed(start)) < 0.05
                codes = codes ^ turned.to(codes.dtype)
            parts.append(tokenizer.decode(codes).clamp(-1, 1))
        again = torch.cat(parts)
        shown.append(again[:20])
        found[f"psnr_{kind}"] = float(psnr(x, again).mean())
        found[f"rfd_{kind}"] = frechet_distance(extract(to_uint8(again).split(250), judge).features, seen)
    grid = torch.cat([part for i in (0, 10) for part in (x[i : i + 10], shown[0][i : i + 10], shown[1][i : i + 10])])
    sheet(grid, run / "reconstructions.png")
    return found


def bits(run: Path) -> dict[str, Any]:
    """Bits per image: stored, needed by the prior, coin flips of the encoder, and of its bits taken one by one.

    Coin flips and bits one by one only where codes are drawn.
    """
    progress = json.loads((run / "progress.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bound = [line[name] for line in lines for name in (DRAWN_BOUND, PROBABLE_BOUND) if name in line][-1]
    stored, code = load_tokenizer(run / "tokenizer").code_shape.bits, progress.get("code", {})
    return {
        "bits": {
            "stored": stored, "prior": bound * stored, "noise": code.get("noise_bits", 0.0),
            "independent": code.get("independent_bits"),
        },
        "training": {
            stage: {key: progress[stage][key] for key in ("steps", "seconds", "images_per_second", "parameters")}
            for stage in ("tokenizer", "prior")
        },
    }  # fmt: skip


def sheet(images: torch.Tensor, path: Path) -> None:
    save_png(make_grid(images, columns=10, scale=max(1, 64 // images.shape[-1])), path)


def commit() -> str:
    out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return out.stdout.strip()


def keep(row: dict[str, Any]) -> None:
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    same = ("recipe", "minutes", "seed", "device")
    rows = [other for other in rows if any(other[key] != row[key] for key in same)]
    RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")


def table() -> None:
    for row in json.loads(RESULTS.read_text()):
        parts = [f"{row['recipe']:28} {row['minutes']} seed {row['seed']}"]
        for kind in ("thresholded", "drawn"):
            if f"psnr_{kind}" in row:
                parts.append(f"{kind} {row[f'psnr_{kind}']:.2f} dB, rFD {row[f'rfd_{kind}']:.2f}")
        if need := row.get("bits"):
            parts.append(f"{need['prior']:.0f} bits of {need['stored']} (noise {need['noise']:.0f})")
        for key, found in row.items():
            if isinstance(found, dict) and "fd" in found:
                recognised = f", {100 * found['recognised']:.0f}%" if "recognised" in found else ""
                parts.append(f"{key}: FD {found['fd']:.2f}{recognised}, {found['seconds_per_sample']:.3f} s")
        print(" | ".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["judge", "measure", "train", "sample", "table"])
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("quality-work"), help="folder for judge and runs")
    parser.add_argument("--data", help="images to train on, in one folder per class")
    parser.add_argument("--test", help="images that nothing is trained on")
    parser.add_argument("--minutes", type=float, nargs=2, default=[16.0, 20.0], metavar=("TOKENIZER", "PRIOR"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0], help="of `sample`, as the next two")
    parser.add_argument("--steps", type=int, nargs="+", default=[16])
    parser.add_argument("--temperature", type=float, nargs="+", default=[TEMPERATURE])
    parser.add_argument("--epochs", type=int, default=8, help="of the judge")
    args = parser.parse_intermixed_args()
    args.work.mkdir(parents=True, exist_ok=True)
    assert math.isfinite(sum(args.minutes))
    if args.what == "judge":
        train_judge(args.work, args.data, args.test, args.epochs)
    elif args.what == "measure":
        measure(args.work, args.recipes)
    elif args.what == "train":
        for name in args.recipes:
            train(args, name)
    elif args.what == "sample":
        for name in args.recipes:
            sample(args, name)
    else:
        table()


if __name__ == "__main__":
    main()
