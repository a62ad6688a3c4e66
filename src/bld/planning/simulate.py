"""One training step on tensors without content: what it computes and the most memory it needs, before it is started.

Operations are counted exactly.  Memory agrees with what is measured within 15%; where activations are recomputed it can
be overstated by up to a half, as the simulation frees them late.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bld.nn.activation_checkpointing import recompute_activations
from bld.nn.attention import always_fused
from bld.priors import KINDS
from bld.priors.position import nats
from bld.priors.transformer import Block
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder, PatchDiscriminator, ReconstructionObjective
from bld.tokenizer.discriminator import discriminator_hinge
from bld.tokenizer.layers import RECOMPUTED
from bld.tokenizer.losses import ObjectiveConfig, untrained_lpips
from bld.training.condition_cache import condition_width
from bld.training.optimizer import moved_by_muon
from bld.training.settings import Settings, TrainingSettings


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


FUSED_ON_CPU = {  # which the counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


Built = tuple[dict[str, nn.Module], nn.Module, Callable[[], None]]
"""(networks to train, the objective, a function that makes a step)"""


@dataclass(frozen=True)
class StepCost:
    """What one training step of a stage costs on one device.

    Attributes:
        parameters: those that are trained.
        averaged: those of the model that is averaged.
        frozen: those that are used and not trained.
        flops: forward and backward, of matrix products, convolutions and attention, for `images` images.
        peak_bytes: the most that is alive in the step beside weights, the optimizer's state and the weight average;
            gradients are included.
        images: how many images (or codes) the step takes.
        matrices: of the parameters those that Muon moves, which keep one number each, where AdamW keeps two.
    """

    parameters: int
    averaged: int
    frozen: int
    flops: int
    peak_bytes: int
    images: int
    matrices: int = 0

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by part; their sum is the most a step needs."""
        gradients = 4 * self.parameters
        return {
            "weights": 4 * (self.parameters + self.frozen),
            "gradients": gradients,
            "optimizer": 8 * self.parameters - 4 * self.matrices,
            "weight average": 4 * self.averaged,
            "activations": max(0, self.peak_bytes - gradients),
        }


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, for as long as they live.

    Args:
        collect: whether Python's garbage is collected before a new peak is noted.
    """

    def __init__(self, collect: bool) -> None:
        super().__init__()
        self._collect = collect
        self.alive, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage(), given)
        return result

    def _follow(self, storage: Any, given: set[int]) -> None:
        if id(storage) in self._known or id(storage) in given:  # a view, or what was there before
            return
        size = storage.nbytes()
        self._known.add(id(storage))
        self.alive += size
        if self.alive > self.peak and self._collect:
            gc.collect()  # recomputed activations end in cycles of Python's, which real tensors do not need
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._ended, id(storage), size)

    def _ended(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def tokenizer_step(settings: Settings, images: int, bf16: bool, perceptual: bool = True) -> StepCost:
    """The cost of a step of the tokenizer stage.

    Args:
        settings: of the run.
        images: how many the step takes.
        bf16: whether it runs under autocast to bfloat16.
        perceptual: whether LPIPS is counted where the objective has it.
    """
    objective = settings.objective if perceptual else _without_lpips(settings.objective)
    return _tokenizer_step(settings.tokenizer, objective, images, bf16, settings.tokenizer_training)


@lru_cache
def judging_flops(config: AutoencoderConfig, objective: ObjectiveConfig) -> tuple[int, int]:
    """Operations for one image that LPIPS, and then the discriminator, add to a step of the tokenizer.

    They are counted beside a small tokenizer, on whose sizes they hardly depend.  LPIPS counts where it is installed.
    """
    small = dataclasses.replace(config, base_channels=min(32, config.base_channels))
    if importlib.util.find_spec("lpips") is None:
        objective = _without_lpips(objective)
    without = dataclasses.replace(objective, adversarial=0.0)
    steps = [_without_lpips(without), without, objective]
    plain, seen, judged = (_tokenizer_step(small, step, 1, bf16=False).flops for step in steps)
    return seen - plain, judged - seen


def _without_lpips(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The objective without LPIPS, and with another reconstruction term."""
    return dataclasses.replace(objective, perceptual=0.0, mse=max(objective.mse, 1.0))


def _tokenizer_step(
    config: AutoencoderConfig,
    objective: ObjectiveConfig,
    images: int,
    bf16: bool,
    training: TrainingSettings | None = None,
) -> StepCost:
    objective.check(config.image_size)
    if config.bottleneck_class.reads_values:  # the cost of a bottleneck is small
        config = dataclasses.replace(config, bottleneck=AutoencoderConfig.bottleneck)

    def build() -> Built:
        model = BinaryAutoencoder(config)
        networks: dict[str, nn.Module] = {"tokenizer": model}
        judge = ReconstructionObjective(objective, untrained_lpips() if objective.perceptual > 0 else None)
        if objective.adversarial > 0:
            networks["discriminator"] = PatchDiscriminator(
                objective.discriminator_channels, objective.discriminator_layers, config.in_channels
            )
        x = torch.rand(images, config.in_channels, config.image_size, config.image_size)

        def step() -> None:
            critic = networks.get("discriminator")
            noise = torch.rand(images, *config.code_shape)
            out = model(x, noise)
            fake = None
            if critic is not None:
                critic.requires_grad_(False)
                fake = critic(out.reconstruction)
            # Not as a module, whose gradients the counter would look for: the adaptive weight asks for its own.
            loss = judge.forward(out.reconstruction, x, out.probs, fake, model.decoder.last_layer, 1.0, out.penalties)
            loss.total.backward()
            model.zero_grad(set_to_none=True)
            made = out.reconstruction.detach()
            del out, loss, fake
            if critic is not None:
                critic.requires_grad_(True)
                discriminator_hinge(*critic(torch.cat([x, made])).chunk(2)).backward()

        return networks, judge, step

    return _simulate(build, training, RECOMPUTED, "tokenizer", images, bf16)


def prior_step(settings: Settings, codes: int, num_classes: int, bf16: bool) -> StepCost:
    """The cost of a step of the prior stage.

    Args:
        settings: of the run.
        codes: how many the step takes.
        num_classes: how many classes the data has.
        bf16: whether it runs under autocast to bfloat16.
    """
    shape, kind = settings.tokenizer.code_shape, KINDS[settings.prior.kind]
    config = settings.denoiser(shape, num_classes, condition_width(settings))

    def build() -> Built:
        network = kind.network(config)
        bits = torch.randint(0, 2, (codes, shape.positions, shape.c), dtype=torch.uint8)
        z, t = bits.float() if kind.is_real else bits, torch.ones(codes, dtype=torch.long)

        def step() -> None:
            nats(network(z, t), z).mean().backward()  # every kind's loss costs about this

        return {"prior": network}, nn.Identity(), step

    return _simulate(build, settings.prior_training, (Block,), "prior", codes, bf16)


def _simulate(
    build: Callable[[], Built],
    training: TrainingSettings | None,
    parts: tuple[type[nn.Module], ...],
    averaged: str,
    images: int,
    bf16: bool,
) -> StepCost:
    recompute = training is not None and training.activation_checkpointing
    with ExitStack() as modes:
        if bf16:
            modes.enter_context(always_fused())
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        networks, judge, step = build()
        if recompute:
            for network in networks.values():
                recompute_activations(network, parts)
        counter = modes.enter_context(FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU))
        memory = modes.enter_context(LiveMemory(collect=recompute))
        gc.freeze()  # so that only what the step makes is looked at
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step()
        gc.unfreeze()
        flops, peak = counter.get_total_flops(), memory.peak
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    frozen = sum(p.numel() for p in judge.parameters())
    matrices = 0
    if training is not None and training.optimizer == "muon":
        for network in networks.values():
            inside = moved_by_muon(network)
            matrices += sum(p.numel() for name, p in network.named_parameters() if name in inside)
    return StepCost(sum(sizes.values()), sizes[averaged], frozen, flops, peak, images, matrices)
