"""What a user would pick instead, on the same images for the same minutes: diffusion over pixels, from PyPI.

    pip install diffusers denoising-diffusion-pytorch
    python benchmarks/peers.py --work WORK --data TRAIN.zip --test TEST.zip --minutes 7.56 diffusers denoising-diffusion

Each is set up as its own documentation does for small images, trained with its usual optimizer and weight average, in
bf16 where our own trainings are, and sampled by DDIM in 50 steps; nothing of a peer is adjusted to the judge.  It is
judged as `benchmarks/quality.py` judges, into the same results, on 300 samples, which take it long (`fd_of_300` of our
rows).  The first steps are timed, and the minutes are as many steps as they hold at that pace: let nothing else run
beside them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import machine
from quality import FEWEST, JUDGED, commit, keep, opened, sheet
from torch import Tensor, nn

from bld.data.values import to_uint8
from bld.evaluation.features import load_extractor
from bld.evaluation.metrics.distances import extract, frechet_distance
from bld.seeding import derive_seed, keyed_permutation
from bld.training.accelerator import autocast_dtype
from bld.training.order import KeyedOrder

BATCH, RATE, DECAY, DDIM_STEPS = 64, 2e-4, 0.995, 50
TIMED = 10  # steps


def half() -> torch.autocast:
    """bf16 where it is faster, as for our own."""
    return torch.autocast("cpu", torch.bfloat16, enabled=autocast_dtype("auto", torch.device("cpu")) == "bf16")


class Peer(ABC):
    """network: what is trained.  conditional: whether it takes classes."""

    network: nn.Module
    conditional = False

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of images (B, 3, S, S) in [-1, 1]."""

    @abstractmethod
    def sample(self, network: nn.Module, labels: Tensor) -> Tensor:
        """Images in [-1, 1] of the averaged network."""


class Diffusers(Peer):
    """`diffusers`: UNet2DModel and DDPMScheduler as in its training tutorial, with class embeddings, for 32 pixels."""

    conditional = True

    def __init__(self, size: int, classes: int):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        self.size = size
        self.network = UNet2DModel(
            sample_size=size, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 128, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), num_class_embeds=classes,
        )  # fmt: skip
        self.noising, self.sampler = DDPMScheduler(num_train_timesteps=1000), DDIMScheduler(num_train_timesteps=1000)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (len(images),))
        noised = self.noising.add_noise(images, noise, t)
        return F.mse_loss(self.network(noised, t, class_labels=labels).sample, noise)

    def sample(self, network: Any, labels: Tensor) -> Tensor:
        x = torch.randn(len(labels), 3, self.size, self.size)
        self.sampler.set_timesteps(DDIM_STEPS)
        for t in self.sampler.timesteps:
            x = self.sampler.step(network(x, t, class_labels=labels).sample, t, x).prev_sample
        return x.clamp(-1, 1)


class DenoisingDiffusion(Peer):
    """`denoising-diffusion-pytorch`: Unet and GaussianDiffusion as in its README, for 32 pixels; without classes."""

    def __init__(self, size: int, classes: int):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        unet = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=False)
        self.network = GaussianDiffusion(unet, image_size=size, timesteps=1000, sampling_timesteps=DDIM_STEPS)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network((images + 1) / 2)

    def sample(self, network: Any, labels: Tensor) -> Tensor:
        return network.sample(batch_size=len(labels)) * 2 - 1


PEERS: dict[str, Callable[[int, int], Peer]] = {"diffusers": Diffusers, "denoising-diffusion": DenoisingDiffusion}


def run(name: str, args: argparse.Namespace) -> None:
    images = opened(args.data, 32)
    torch.manual_seed(derive_seed(args.seed, "peer", 0))
    peer = PEERS[name](32, len(images.classes))
    optimizer = torch.optim.AdamW(peer.network.parameters(), lr=RATE)
    averaged, order = copy.deepcopy(peer.network), KeyedOrder(len(images), BATCH, args.seed, "peer-order")

    def step(number: int) -> None:
        rows = order.indices(order.positions(number))
        x = images.centre(torch.as_tensor(rows))
        mirrored = torch.rand(len(x)) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        with half():
            loss = peer.loss(x, images.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(peer.network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(averaged.parameters(), peer.network.parameters(), strict=True):
                mine.lerp_(theirs, 1 - min(DECAY, (1 + number) / (10 + number)))

    folder = args.work / "peers" / f"{name}-{args.minutes:g}-seed{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.pt"
    done, pace = 0, 0.0
    if state.is_file():
        saved = torch.load(state)
        done, pace = saved["step"], saved["pace"]
        peer.network.load_state_dict(saved["network"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
    else:
        step(0)
        taken = []
        for number in range(1, TIMED):
            begun = time.perf_counter()
            step(number)
            taken.append(time.perf_counter() - begun)
        done, pace = TIMED, statistics.median(taken)
    steps = round(60 * args.minutes / pace)
    for number in range(done, steps):
        torch.manual_seed(derive_seed(args.seed, "peer-step", number))
        step(number)
        if (number + 1) % 100 == 0 or number + 1 == steps:
            saved = {"step": number + 1, "pace": pace, "network": peer.network.state_dict()}
            saved |= {"averaged": averaged.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(saved, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            print(f"{name}, step {number + 1} of {steps}", flush=True)
    row = {"recipe": f"peer-{name}", "minutes": [0, args.minutes], "seed": args.seed, "steps": {"peer": steps}}
    keep(row | {"pace": {"peer": pace}, "commit": commit(), **machine(), **judged(peer, averaged.eval(), args, folder)})


@torch.no_grad()
def judged(peer: Peer, averaged: nn.Module, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    judge, images = load_extractor(str(args.work / "judge")), opened(args.test, 32)
    rows = torch.from_numpy(keyed_permutation(0, "quality-test", 0, len(images))[:JUDGED].copy())
    seen = extract((images.uint8_centre(part) for part in rows.split(250)), judge).features
    labels = torch.arange(FEWEST) % len(images.classes)
    torch.manual_seed(derive_seed(args.seed, "peer-samples", 0))
    begun = time.perf_counter()
    with half():
        samples = torch.cat([to_uint8(peer.sample(averaged, part)) for part in labels.split(60)])
    seconds = (time.perf_counter() - begun) / FEWEST
    table = extract(samples.split(250), judge)
    sheet(samples[:100].float() / 127.5 - 1, folder / "samples.png")
    found = {"fd": frechet_distance(table.features, seen)}
    if peer.conditional:
        found["recognised"] = float((table.logits.argmax(1) == labels).float().mean())
    return {f"ddim{DDIM_STEPS}": {**found, "samples": FEWEST, "seconds_per_sample": seconds}, "judge": judge.accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="+", choices=list(PEERS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--minutes", type=float, default=36.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_intermixed_args()
    for name in args.peers:
        run(name, args)


if __name__ == "__main__":
    main()
