"""Training of the prior on cached codes: Algorithm 1, one optimizer step a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bld.autoencoder import BinaryAutoencoder
from bld.checkpoint import PipelineIndex, SamplingDefaults, save_diffusion, save_index, save_model
from bld.code_cache import CodeCache
from bld.codes import to_grid
from bld.diffusion import sample_codes
from bld.diffusion.likelihood import prior_bits
from bld.diffusion.objective import variational_terms
from bld.images import make_grid, save_png
from bld.priors import Denoiser
from bld.seeding import derive_seed, keyed_generator, keyed_generators
from bld.training.loop import Stage, Update
from bld.training.order import KeyedOrder
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings

PREVIEWED = 36
PREVIEW_STEPS = 16


class HeldOutCodes(NamedTuple):
    """Codes of images the prior is not trained on: tokens (n, N, c) uint8, and labels (n,) or None."""

    tokens: Tensor
    labels: Tensor | None


class PriorStage(Stage):
    """Codes in, a prior in RUN/prior out."""

    name = "prior"

    def __init__(
        self,
        settings: Settings,
        cache: CodeCache,
        held_out: HeldOutCodes,
        tokenizer: BinaryAutoencoder,
        accelerator: Accelerator,
        run: RunFolder,
    ):
        self.settings, self.training, self.run = settings, settings.prior_training, run
        self.cache, self.held_out, self.accelerator = cache, held_out, accelerator
        self.tokenizer = tokenizer.to(accelerator.device)
        self.diffusion = settings.diffusion.build()
        torch.manual_seed(derive_seed(settings.seed, "prior-weights"))
        config = settings.denoiser(cache.shape, len(cache.classes))
        self.model: Denoiser = Denoiser(config, self.diffusion.evidence_logits()).to(accelerator.device)
        self.conditional = config.num_classes > 0

    def networks(self) -> dict[str, nn.Module]:
        """The denoiser alone."""
        return {"prior": self.model}

    def batches(self, first_step: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None, range]]:
        """(codes (B, N, c), steps t (B,), labels (B,) or None, global positions) of each step."""
        B, seed = self.training.batch_size, self.settings.seed
        order = KeyedOrder(len(self.cache), B, seed, "prior-order")
        step = first_step
        while True:
            mine = order.positions(step, self.accelerator.process_index, self.accelerator.num_processes)
            local = mine - step * B
            # Drawn for the whole global batch, so that each process sees its share of the same draws.
            generator = keyed_generator(seed, "prior-batch", step)
            views = torch.randint(self.cache.views, (B,), generator=generator)[local]
            t = torch.randint(1, self.diffusion.steps + 1, (B,), generator=generator)[local]
            dropped = (torch.rand(B, generator=generator) < self.settings.prior.label_dropout)[local]
            images = order.indices(mine)
            labels = None
            if self.conditional and self.cache.labels is not None:
                labels = self.cache.labels[images].masked_fill(dropped, self.model.null_label)
            yield self.cache.read(images, views.numpy()), t, labels, range(int(mine[0]), int(mine[-1]) + 1)
            step += 1

    def train_step(
        self,
        batch: tuple[Tensor, Tensor, Tensor | None, range],
        step: int,
        progress: float,
        update: Update,
    ) -> dict[str, Tensor]:
        """Noise the codes to step t, predict the flips, update (eq. 13)."""
        device = self.accelerator.device
        z0, t = batch[0].to(device), batch[1].to(device)
        labels = None if batch[2] is None else batch[2].to(device)
        z_t = self.diffusion.diffuse(z0, t, keyed_generators(self.settings.seed, "prior-noise", batch[3]))
        with self.accelerator.autocast():
            logits = self.model(z_t, t, labels)
        loss = self.diffusion.loss(logits, z0, z_t, t, self.settings.prior.vlb_weight)
        norm = update("prior", loss.total)
        return {
            "loss": loss.total.detach(),
            "residual": loss.residual,
            "vlb": loss.vlb,
            "gradient_norm": norm,
        }

    @torch.no_grad()
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Loss on held-out codes, and an unbiased estimate of their bound (eq. 7) in bits per bit of code.

        Each code is noised to one of the T steps, all steps equally often; few codes are taken several times.
        """
        steps, device = self.diffusion.steps, self.accelerator.device
        rows = torch.arange(math.ceil(max(len(self.held_out.tokens), steps) / steps) * steps)
        chosen = rows % len(self.held_out.tokens)
        tokens, t = self.held_out.tokens[chosen].to(device), (rows % steps + 1).to(device)
        labels = None if self.held_out.labels is None else self.held_out.labels[chosen].to(device)
        z_t = self.diffusion.diffuse(tokens, t, keyed_generators(self.settings.seed, "held-out", range(len(t))))
        with self.accelerator.autocast():
            logits = averaged(z_t, t, labels)
        loss = self.diffusion.loss(logits, tokens, z_t, t, self.settings.prior.vlb_weight)
        terms = variational_terms(self.diffusion, logits, tokens, z_t, t, t - 1)
        bits = float(terms.double().mean()) / math.log(2) * steps + prior_bits(self.diffusion)
        return {"held_out_loss": float(loss.total), "held_out_bits_per_bit": bits}

    def preview(self, averaged: nn.Module, path: Path) -> None:
        """A grid of samples, always of the same seeds; one class a column where there are classes."""
        device = self.accelerator.device
        labels = torch.arange(PREVIEWED, device=device) % max(1, len(self.cache.classes))
        shape = (PREVIEWED, self.cache.shape.positions, self.cache.shape.c)
        all_steps = self.diffusion.target == "previous"
        with self.accelerator.autocast():
            codes = sample_codes(
                lambda z, t: averaged(z, t, labels if self.conditional else None),
                shape,
                self.diffusion,
                steps=None if all_steps else min(PREVIEW_STEPS, self.diffusion.steps),
                temperature=self.settings.sampling.temperature,
                generators=keyed_generators(self.settings.seed, "preview", range(PREVIEWED)),
                device=device,
            )
            batches = to_grid(codes, self.cache.shape).split(self.tokenizer.config.images_at_a_time(PREVIEWED))
            with torch.no_grad():
                images = torch.cat([self.tokenizer.decode(batch).clamp(-1, 1).cpu() for batch in batches])
        scale = max(1, 64 // images.shape[-1])
        save_png(make_grid(images, columns=min(10, max(6, len(self.cache.classes))), scale=scale), path)

    def save(self, averaged: nn.Module) -> None:
        """Write the averaged prior and its diffusion; with the tokenizer beside it, the run is now a pipeline."""
        assert isinstance(averaged, Denoiser)
        save_model(self.run.prior, averaged)
        save_diffusion(self.run.diffusion, self.diffusion)
        sampling, data = self.settings.sampling, self.settings.data
        defaults = SamplingDefaults(sampling.steps or None, sampling.temperature, sampling.guidance_scale)
        classes = self.cache.classes if self.conditional else []
        save_index(self.run.path, PipelineIndex(classes, data.background, defaults, data.resample))
