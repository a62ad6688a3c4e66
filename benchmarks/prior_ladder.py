"""Which prior makes the most of some minutes?  Variations on the cached codes of a run, judged by their samples.

    python benchmarks/prior_ladder.py --run RUN --judge WORK/judge --test TEST.zip --minutes 4 p2-b64 \
        --pace 0.0845 patch=2 dim=256 depth=8 batch=64

RUN is a run whose code cache holds probabilities (`codes.fresh=true`), the judge is that of `benchmarks/quality.py`.  A
variation gets as many steps as the minutes hold at its pace, in seconds a step: measured before on an idle machine, or,
without --pace, at the beginning.  Rows are added to benchmarks/quality/ladder.json.

`adaln=1`: step and class shift, scale and gate the blocks (one modulation for all, an offset for each), in the place of
tokens.  `strata=1`: the steps t of a batch are spread evenly over 1 … T.  `holes=0.25`: of a quarter of the images a
part of the code is shown without noise (`prior.inpainting`).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from inpainting import bits, holes
from measuring import machine
from quality import commit, opened
from torch import Tensor, nn

from bld.codes import from_patches, to_grid
from bld.data import make_grid, save_png
from bld.data.values import to_uint8
from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.evaluation.features import load_extractor
from bld.evaluation.metrics.distances import extract, frechet_distance
from bld.priors import Denoiser, DenoiserConfig
from bld.priors.transformer import Attention
from bld.seeding import keyed_draws, keyed_permutation
from bld.serialization.models import load_tokenizer
from bld.training.code_cache import CodeCache
from bld.training.held_out_codes import held_out_codes
from bld.training.holes import DRAWS, hidden_positions
from bld.training.optimizer import make_optimizer
from bld.training.settings import TrainingSettings

RESULTS = Path(__file__).parent / "quality" / "ladder.json"
DEFAULTS = {
    "patch": 1, "dim": 192, "depth": 6, "heads": 4, "batch": 128, "rate": 1e-3, "beta2": 0.99, "decay": 0.01,
    "warmup": 100, "ema": 0.995, "optimizer": "adamw", "adaln": 0, "strata": 0, "holes": 0.0, "schedule": "linear",
    "seed": 0,
}  # fmt: skip
T, DROPPED, VLB_WEIGHT, TEMPERATURE = 64, 0.1, 0.1, 0.9
JUDGED, SAMPLED, HELD_OUT = 2000, 1000, 1024


class AdaptiveBlock(nn.Module):
    """A block whose norms are shifted, scaled and gated by step and class (Peebles & Xie 2023)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False) for _ in range(2))
        self.attention = Attention(dim, heads)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.offset = nn.Parameter(torch.zeros(6 * dim))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        changes = (modulation + self.offset).unsqueeze(1).to(x.dtype).chunk(6, -1)
        y = self.norm1(x) * (1 + changes[0]) + changes[1]
        x = x + self.attention(y) * (1 + changes[2])
        y = self.norm2(x) * (1 + changes[3]) + changes[4]
        return x + self.contract(F.gelu(self.expand(y))) * (1 + changes[5])


class AdaptiveDenoiser(Denoiser):
    """The denoiser with `AdaptiveBlock`s: step and class come by modulation, not as tokens."""

    def __init__(self, config: DenoiserConfig, evidence: Tensor) -> None:
        super().__init__(config, evidence)
        self.blocks = nn.ModuleList(AdaptiveBlock(config.dim, config.heads) for _ in range(config.depth))
        self.modulate = nn.Linear(config.dim, 6 * config.dim)
        for module in (*self.blocks.modules(), self.modulate):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for last in (block.attention.out, block.contract):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * config.depth))

    def see_all(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        modulation = self.modulate(F.silu(self.condition(t, condition)[0].sum(1)))
        x = x + self.positions
        for block in self.blocks:
            x = block(x, modulation)
        return from_patches(self.to_logits(x), self.code_shape, self.config.patch_size)


class Variation:
    """One row: network, diffusion, and the codes of a run."""

    def __init__(self, choices: dict[str, Any], run: Path) -> None:
        self.choices, self.cache, self.run = choices, CodeCache(run / "codes"), run
        self.shape = self.cache.shape
        power = choices["schedule"].removeprefix("pow")
        table = [(1 - t / T) ** float(power) for t in range(T + 1)] if power != choices["schedule"] else None
        schedule = NoiseSchedule("table", table=table) if table else NoiseSchedule(choices["schedule"], T)
        self.diffusion = BernoulliDiffusion(schedule, "z0")
        config = DenoiserConfig(
            code_height=self.shape.h, code_width=self.shape.w, code_bits=self.shape.c, patch_size=choices["patch"],
            dim=choices["dim"], depth=choices["depth"], heads=choices["heads"], steps=T,
            num_classes=len(self.cache.classes), evidence="value",
        )  # fmt: skip
        torch.manual_seed(choices["seed"])
        kind = AdaptiveDenoiser if choices["adaln"] else Denoiser
        self.network = kind(config, self.diffusion.evidence_logits())
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        how = TrainingSettings(
            optimizer=choices["optimizer"], learning_rate=choices["rate"], beta2=choices["beta2"],
            weight_decay=choices["decay"],
        )  # fmt: skip
        self.optimizer = make_optimizer(self.network, how)
        self.draws = torch.Generator().manual_seed(1000 + choices["seed"])
        self.order, self.at = torch.randperm(len(self.cache), generator=self.draws), 0

    def denoiser(self, network: nn.Module, labels: Tensor, guidance: float = 1.0) -> Any:
        null = torch.full_like(labels, len(self.cache.classes))

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                if guidance == 1:
                    return network(z, t, labels)
                given, free = network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([labels, null])).chunk(2)
            return free + guidance * (given - free)

        return denoise

    def step(self, progress: float) -> float:
        B, choices = self.choices["batch"], self.choices
        if self.at + B > len(self.order):
            self.order, self.at = torch.randperm(len(self.cache), generator=self.draws), 0
        images = self.order[self.at : self.at + B].numpy()
        self.at += B
        views = torch.randint(self.cache.views, (B,), generator=self.draws).numpy()
        y = self.cache.rows(images, views).float().view(B, self.shape.positions, self.shape.c) / 255
        z0 = (torch.rand(y.shape, generator=self.draws) < y).to(torch.uint8)
        t = torch.randint(1, T + 1, (B,), generator=self.draws)
        if choices["strata"]:  # one in each of B equal parts of 1 … T, in any order
            parts = (torch.randperm(B, generator=self.draws) + torch.rand(B, generator=self.draws)) / B
            t = 1 + (T * parts).long().clamp(max=T - 1)
        labels = self.cache.labels[images].clone()
        labels[torch.rand(B, generator=self.draws) < DROPPED] = len(self.cache.classes)
        hidden = None
        if choices["holes"]:
            draws = torch.rand(B, DRAWS, generator=self.draws)
            hidden = hidden_positions(draws, self.shape.h, self.shape.w, choices["holes"])
        loss = self.diffusion.training_loss(
            self.denoiser(self.network, labels), z0, t, None, VLB_WEIGHT, probs=y, hidden=hidden
        )
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = choices["rate"] * progress
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.residual)

    def train(self, steps: int) -> None:
        for i in range(steps):
            self.step(min(1.0, (i + 1) / self.choices["warmup"]) * (0.5 + 0.5 * math.cos(math.pi * i / steps)))
            kept = min(self.choices["ema"], (1 + i) / (10 + i))
            mine, theirs = ([p.detach() for p in net.parameters()] for net in (self.averaged, self.network))
            torch._foreach_lerp_(mine, theirs, 1 - kept)

    @torch.no_grad()
    def bound(self, tokenizer: nn.Module, images: Any) -> float:
        """Bits per image on drawn codes of test images."""
        rows = keyed_permutation(0, "quality-test", 0, len(images))[:HELD_OUT].copy()
        total = 0.0
        for part in torch.from_numpy(rows).split(256):
            codes = held_out_codes(tokenizer, images, part, draws=1, seed=7)[:, 0]
            t = torch.arange(len(part)) % T + 1
            denoise = self.denoiser(self.averaged, images.labels[part])
            total += float(self.diffusion.bound_at(denoise, codes, t, keyed_draws(0, "bound", part)).sum())
        return total / len(rows)

    @torch.no_grad()
    def hidden_bits(self, tokenizer: Any, images: Any) -> dict[str, dict[str, float]]:
        """What the bits in a hole cost at steps t, in bits per bit, where the others are shown as they are."""
        rows = torch.from_numpy(keyed_permutation(0, "inpainting", 0, len(images))[:HELD_OUT].copy())
        z0 = torch.cat([tokenizer.encode(images.centre(part)).flatten(1, 2) for part in rows.split(256)])
        mine = SimpleNamespace(diffusion=self.diffusion, prior=self.averaged)
        return {
            name: {str(t): bits(mine, z0, hole, "clean", t) for t in (T, 3 * T // 4, T // 2, T // 4)}
            for name, hole in holes(self.shape.h).items()
        }

    @torch.no_grad()
    def sample(self, tokenizer: Any, count: int, guidance: float, steps: int = 16) -> Tensor:
        parts = []
        for start in range(0, count, 100):
            labels = torch.arange(start, start + 100) % len(self.cache.classes)
            codes = self.diffusion.sample(
                self.denoiser(self.averaged, labels, guidance),
                (100, self.shape.positions, self.shape.c), steps=steps, temperature=TEMPERATURE,
                generators=keyed_draws(self.choices["seed"], "ladder", range(start, start + 100)),
            )  # fmt: skip
            parts.append(to_uint8(tokenizer.decode(to_grid(codes, self.shape)).clamp(-1, 1)))
        return torch.cat(parts)


def seconds_a_step(variation: Variation, rounds: int = 8) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        variation.step(0.0)
        taken.append(time.perf_counter() - begun)
    return sorted(taken[2:])[len(taken[2:]) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("choices", nargs="*", help=", ".join(DEFAULTS))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds a step")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    args = parser.parse_intermixed_args()
    given = dict(word.split("=", 1) for word in args.choices)
    assert given.keys() <= DEFAULTS.keys(), f"unknown: {given.keys() - DEFAULTS.keys()}"
    choices = {name: type(value)(given.get(name, value)) for name, value in DEFAULTS.items()}
    pace = args.pace or seconds_a_step(Variation(choices, args.run))
    variation, steps = Variation(choices, args.run), int(60 * args.minutes / pace)
    begun = time.perf_counter()
    variation.train(steps)
    tokenizer, judge = load_tokenizer(args.run / "tokenizer").eval(), load_extractor(str(args.judge))
    images = opened(args.test, tokenizer.config.image_size)
    rows = torch.from_numpy(keyed_permutation(0, "quality-test", 0, len(images))[:JUDGED].copy())
    real = extract((images.uint8_centre(part) for part in rows.split(250)), judge).features
    row = {
        "name": args.name, "run": args.run.name, "choices": choices, "minutes": args.minutes, "pace": pace,
        "steps": steps, "seconds": round(time.perf_counter() - begun, 1), "commit": commit(),
        "parameters": sum(p.numel() for p in variation.network.parameters()),
        "bits": variation.bound(tokenizer, images), "hidden_bits": variation.hidden_bits(tokenizer, images),
        **machine(),
    }  # fmt: skip
    for guidance in args.guidance:
        made = variation.sample(tokenizer, SAMPLED, guidance)
        found = extract(made.split(250), judge)
        asked = torch.arange(len(made)) % len(variation.cache.classes)
        recognised = float((found.logits.argmax(1) == asked).float().mean())
        row[f"guidance{guidance:g}"] = {"fd": frechet_distance(found.features, real), "recognised": recognised}
        save_png(make_grid(made[:100].float() / 127.5 - 1, columns=10, scale=2),
                 args.run / f"ladder-{args.name}-guidance{guidance:g}.png")  # fmt: skip
    print(json.dumps(row, indent=1))
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    RESULTS.write_text(json.dumps([*kept, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
