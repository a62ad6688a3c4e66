"""Training of the prior on cached codes: Algorithm 1, one optimizer step a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bld.codes import to_grid
from bld.data import make_grid, save_png
from bld.diffusion import BernoulliDiffusion
from bld.diffusion.process import Process
from bld.io.files import written_aside
from bld.priors import KINDS, DenoiserConfig, Transformer
from bld.priors.transformer import Block
from bld.seeding import derive_seed, keyed_draws, keyed_generator
from bld.serialization.models import PipelineIndex, SamplingDefaults, save_index, save_model, save_process
from bld.tokenizer import BinaryAutoencoder
from bld.training.code_cache import CodeCache
from bld.training.condition_cache import ImageVectors
from bld.training.holes import DRAWS, hidden_positions
from bld.training.init_from import Origin, init_prior
from bld.training.order import KeyedOrder, part_of
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings
from bld.training.stages.base import Stage, Update

PREVIEWED = 36
PREVIEW_STEPS = 16
SCALE_IMAGES = 4096
MEASURED_AT_A_TIME = 256  # codes, when nothing is trained

# Bits per stored bit that the prior needs for codes of held-out images: codes drawn as the prior is trained on, or the
# most probable ones (older runs, and priors that are trained on those).
DRAWN_BOUND, PROBABLE_BOUND = "held_out_drawn_bits_per_bit", "held_out_bits_per_bit"


class HeldOutCodes(NamedTuple):
    """Codes of images the prior is not trained on.

    Attributes:
        tokens: (n · views, N, c), bits as uint8 or real numbers as float32, the views of an image in a row.
        condition: the images' labels (n,) or vectors (n, 1 + V), or None.
        captions: those of the n images, or None.
        draws: of each image from the encoder, which are its views; 0 is one view, the most probable code.
    """

    tokens: Tensor
    condition: Tensor | None
    captions: list[str] | None = None
    draws: int = 1

    @property
    def bound_name(self) -> str:
        """What the bound is called in the log, by what it is a bound of."""
        return DRAWN_BOUND if self.draws else PROBABLE_BOUND

    def condition_of(self, codes: Tensor) -> Tensor | None:
        """The condition of these of the codes, given by their rows in `tokens`; None without conditions."""
        return None if self.condition is None else self.condition[codes // max(1, self.draws)]


class Batch(NamedTuple):
    """What a step of the prior learns from.

    Attributes:
        rows: of the cache, uint8 (B, bytes): the codes z_0 as they are kept.
        t: (B,) in 1 … T.
        condition: labels (B,) or vectors (B, 1 + V), or None.
        positions: in the order of the whole training; they key the draws.
    """

    rows: Tensor
    t: Tensor
    condition: Tensor | None
    positions: range


class PriorStage(Stage):
    """The training of a prior: from cached codes to RUN/prior.

    Args:
        settings: of the run.
        cache: the codes of the training images.
        held_out: the codes to measure on.
        tokenizer: which made the codes; it decodes previews.
        accelerator: precision and processes.
        run: the folder that everything is written to.
        vectors: of the cache's images, in their order; without them labels condition, where there are some.
    """

    name = "prior"
    recomputed = (Block,)

    def __init__(
        self,
        settings: Settings,
        cache: CodeCache,
        held_out: HeldOutCodes,
        tokenizer: BinaryAutoencoder,
        accelerator: Accelerator,
        run: RunFolder,
        vectors: ImageVectors | None = None,
    ):
        self.settings, self.training, self.run = settings, settings.prior_training, run
        self.cache, self.held_out, self.accelerator = cache, held_out, accelerator
        self.tokenizer = tokenizer.to(accelerator.device)
        self.process = settings.process(cache.shape, _scale(cache) if KINDS[settings.prior.kind].is_real else 1.0)
        torch.manual_seed(derive_seed(settings.seed, "prior-weights"))
        self.vectors = vectors
        config = settings.denoiser(cache.shape, len(cache.classes), vectors.cache.width if vectors is not None else 0)
        self.model: Transformer = build_network(self.process, config)
        if vectors is not None:
            mean, scale = vectors.centre_and_scale()
            self.model.load_state_dict({"vectors.mean": mean, "vectors.scale": scale}, strict=False)
        self.model.to(accelerator.device)
        self.conditional = config.is_conditional
        self.milestone = 0.0 if self.conditional else settings.prior.guide

    def networks(self) -> dict[str, nn.Module]:
        """The denoiser alone."""
        return {"prior": self.model}

    def begin_from(self, origin: Origin) -> str:
        """Take over the weights of another prior, class by class where there are classes."""
        classes = self.cache.classes if self.conditional else []
        return init_prior(self.model, origin, classes, self.process, self.tokenizer)

    def batches(self, first_step: int, taken: int | None = None) -> Iterator[Batch]:
        """The codes of each step, with what the prior learns from beside them."""
        B, seed = self.training.batch_size, self.settings.seed
        order = KeyedOrder(len(self.cache), B, seed, "prior-order", first_step, taken)
        for step in itertools.count(first_step):
            # Drawn for the whole global batch, so that each process sees its share of the same draws.
            generator = keyed_generator(seed, "prior-batch", step)
            views = torch.randint(self.cache.views, (B,), generator=generator)
            t = torch.randint(1, self.process.steps + 1, (B,), generator=generator)
            dropped = torch.rand(B, generator=generator) < self.settings.prior.label_dropout
            for part in self.parts():
                mine, rows = order.positions(step, *part), slice(*part_of(B, *part))
                images = order.indices(mine)
                condition = self._condition(images)
                if condition is not None:
                    condition = self.model.dropped(condition, dropped[rows])
                yield Batch(self.cache.rows(images, views[rows].numpy()), t[rows], condition, mine)

    def codes(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """z_0 (B, N, c) and its probabilities, on the device: as cached, or drawn for this step (Alg. 1, line 6)."""
        rows = batch.rows.to(self.accelerator.device, non_blocking=True)
        return self.cache.drawn(rows, keyed_draws(self.settings.seed, "prior-codes", batch.positions))

    def _condition(self, images: np.ndarray) -> Tensor | None:
        """Labels (B,) or vectors (B, 1 + V) of the images, as far as the prior is conditioned on them."""
        if self.vectors is not None:
            return self.vectors.read(images)
        return self.cache.labels[images] if self.conditional and self.cache.labels is not None else None

    def train_step(self, batch: Batch, step: int, progress: float, update: Update) -> dict[str, Tensor]:
        """Noise the codes to step t, predict, update (Algorithm 1)."""
        device, settings = self.accelerator.device, self.settings
        (z0, probs), t = self.codes(batch), batch.t.to(device, non_blocking=True)
        condition = None if batch.condition is None else batch.condition.to(device, non_blocking=True)
        denoise, extra = self._denoise(self.prepared[self.name], condition), {}
        if isinstance(self.process, BernoulliDiffusion):
            extra["probs"] = probs if settings.prior.soft_targets else None
            extra["hidden"] = self._hidden(batch) if settings.prior.inpainting else None
        generators = keyed_draws(settings.seed, "prior-noise", batch.positions)
        loss = self.process.training_loss(denoise, z0, t, generators, settings.prior.vlb_weight, **extra)
        update("prior", loss.total)
        terms = {name: value for name, value in loss._asdict().items() if name != "total"}
        return {"loss": loss.total.detach(), **terms}

    def _hidden(self, batch: Batch) -> Tensor:
        """Which positions of each code the step learns, (B, N): all of them, or those in its hole."""
        draws = keyed_draws(self.settings.seed, "prior-holes", batch.positions)
        shape, share = self.cache.shape, self.settings.prior.inpainting
        uniform = draws.uniform((len(batch.positions), DRAWS), self.accelerator.device)
        return hidden_positions(uniform, shape.h, shape.w, share)

    def _denoise(self, network: nn.Module, condition: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The network under this condition, in the run's precision."""

        def denoise(z_t: Tensor, t: Tensor) -> Tensor:
            with self.accelerator.autocast():
                return network(z_t, t, condition)

        return denoise

    @torch.no_grad()
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Loss on held-out codes, and an unbiased estimate of their code length (eq. 7) in bits per bit of code.

        The codes are drawn as those that the prior learns from, several times an image (`held_out_codes`).  Each is
        noised to one of the T steps, all steps equally often; few codes are taken several times.
        """
        steps = self.process.steps
        count = math.ceil(max(len(self.held_out.tokens), steps) / steps) * steps
        assert isinstance(averaged, Transformer)
        with self.accelerator.autocast():
            network = averaged.for_inference()
        loss = bits = 0.0
        for rows in torch.arange(count).split(MEASURED_AT_A_TIME):
            part_loss, part_bits = self._measured(network, rows)
            loss, bits = loss + part_loss * len(rows), bits + part_bits
        metrics = {"held_out_loss": loss / count}
        if self.process.has_likelihood:
            metrics[self.held_out.bound_name] = bits / count / self.cache.shape.bits
        return metrics

    def _measured(self, network: Transformer, rows: Tensor) -> tuple[float, float]:
        """(mean loss, sum of the estimated code lengths in bits) of a batch of `measure`; each row its own noise."""
        device, seed = self.accelerator.device, self.settings.seed
        chosen = rows % len(self.held_out.tokens)
        tokens, t = self.held_out.tokens[chosen].to(device), (rows % self.process.steps + 1).to(device)
        condition = self.held_out.condition_of(chosen)
        denoise = self._denoise(network, None if condition is None else condition.to(device))
        noise = keyed_draws(seed, "held-out", rows.tolist())
        loss = self.process.training_loss(denoise, tokens, t, noise, self.settings.prior.vlb_weight)
        if not self.process.has_likelihood:
            return float(loss.total), 0.0
        noise = keyed_draws(seed, "held-out", rows.tolist())
        return float(loss.total), float(self.process.bound_at(denoise, tokens, t, noise).sum())

    def preview(self, averaged: nn.Module, path: Path) -> None:
        """A grid of samples, always of the same seeds; one class a column where there are classes.

        Vectors are those of held-out images; prior-captions.txt beside it has their captions, row by row.
        """
        device = self.accelerator.device
        condition, columns = self._previewed(path.parent)
        shape = (PREVIEWED, self.cache.shape.positions, self.cache.shape.c)
        assert isinstance(averaged, Transformer)
        with self.accelerator.autocast():
            network = averaged.for_inference().for_sampling()
            codes = self.process.sample(
                lambda z, t: network(z, t, condition),
                shape,
                steps=min(PREVIEW_STEPS, self.process.steps) if self.process.may_skip else None,
                temperature=sampling_defaults(self.settings, self.process, guided=False).temperature,
                generators=keyed_draws(self.settings.seed, "preview", range(PREVIEWED)),
                known=None,
                mask=None,
                callback=None,
                device=device,
            )
            batches = to_grid(codes, self.cache.shape).split(self.tokenizer.config.images_at_a_time(PREVIEWED))
            with torch.no_grad():
                images = torch.cat([self.tokenizer.decode(batch).clamp(-1, 1).cpu() for batch in batches])
        scale = max(1, 64 // images.shape[-1])
        save_png(make_grid(images, columns=columns, scale=scale), path)

    def _previewed(self, folder: Path) -> tuple[Tensor | None, int]:
        """(the condition of each sample of a preview, columns of the grid)."""
        columns = min(10, max(6, len(self.cache.classes)))
        order = torch.arange(PREVIEWED)
        if not self.conditional:
            return None, columns
        if self.vectors is None:
            return (order % len(self.cache.classes)).to(self.accelerator.device), columns
        assert self.held_out.condition is not None
        chosen = order % len(self.held_out.condition)
        if self.held_out.captions is not None:
            lines = [
                f"{i // 6 + 1},{i % 6 + 1}: {self.held_out.captions[row]}" for i, row in enumerate(chosen.tolist())
            ]
            with written_aside(folder / "prior-captions.txt") as aside:
                aside.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
        return self.held_out.condition[chosen].to(self.accelerator.device), 6

    def save(self, averaged: nn.Module, early: nn.Module | None) -> None:
        """Write the averaged prior, its guide and diffusion; with the tokenizer beside it, it is a pipeline now."""
        assert isinstance(averaged, Transformer)
        save_model(self.run.prior, averaged)
        if isinstance(early, Transformer):
            save_model(self.run.guide, early)
        save_process(self.run.diffusion, self.process)
        data, guided = self.settings.data, averaged.config.is_conditional or early is not None
        defaults = sampling_defaults(self.settings, self.process, guided)
        classes = self.cache.classes if averaged.config.num_classes else []
        index = PipelineIndex(
            classes,
            data.background,
            defaults,
            data.resample,
            named_encoder(self.settings),
            self.vectors.cache.key.encoder if self.vectors is not None else "",
            guide=early is not None,
        )
        save_index(self.run.path, index, type(averaged).__name__, type(self.process).__name__)


def sampling_defaults(settings: Settings, process: Process, guided: bool) -> SamplingDefaults:
    """How the pipeline of a run samples when not told otherwise; real numbers start from unscaled noise.

    Args:
        settings: of the run.
        process: how its prior noises and generates.
        guided: whether there is something to guide by.
    """
    sampling = settings.sampling
    steps = min(sampling.steps, process.steps) if process.may_skip else 0
    temperature = 1.0 if KINDS[process.kind].is_real else sampling.temperature
    return SamplingDefaults(steps or None, temperature, sampling.guidance_scale if guided else 1.0)


def named_encoder(settings: Settings) -> str:
    """The text encoder as a pipeline names it: a folder by its absolute path, else as the settings do."""
    encoder = settings.prior.text_encoder
    return str(Path(encoder).resolve()) if encoder and Path(encoder).is_dir() else encoder


def build_network(process: Process, config: DenoiserConfig) -> Transformer:
    """The untrained network of a process."""
    return KINDS[process.kind].build(config, process)


def _scale(cache: CodeCache) -> float:
    """Standard deviation of the cached latents, over some of them, evenly spread."""
    rows = np.linspace(0, len(cache) - 1, min(len(cache), SCALE_IMAGES)).astype(np.int64)
    return float(cache.read(rows).double().std())
