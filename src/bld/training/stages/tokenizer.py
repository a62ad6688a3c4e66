"""Training of the tokenizer: eq. (1) and (2), with any bottleneck and an optional discriminator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bld.data import ImageSet, make_pairs, psnr, save_png, to_unit
from bld.errors import SettingError
from bld.seeding import derive_seed, keyed_draws, uniform
from bld.serialization.models import save_model
from bld.tokenizer import BinaryAutoencoder, PatchDiscriminator, ReconstructionObjective
from bld.tokenizer.discriminator import discriminator_hinge
from bld.tokenizer.layers import RECOMPUTED
from bld.training.init_from import Origin, init_tokenizer
from bld.training.order import KeyedOrder, spread
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings
from bld.training.stages.base import Stage, Update

MOST_MEASURED = 512
AT_A_TIME = 32  # at 256×256, when nothing is trained


class TokenizerStage(Stage):
    """The training of a tokenizer: from images to RUN/tokenizer.

    Raises:
        SettingError: for an adaptive adversarial weight where networks are spread over processes.
    """

    name = "tokenizer"
    recomputed = RECOMPUTED

    def __init__(
        self,
        settings: Settings,
        train: ImageSet,
        held_out: ImageSet,
        accelerator: Accelerator,
        run: RunFolder,
    ):
        self.settings, self.training, self.run = settings, settings.tokenizer_training, run
        self.train_images, self.held_out, self.accelerator = train, held_out, accelerator
        torch.manual_seed(derive_seed(settings.seed, "tokenizer-weights"))
        self.model: BinaryAutoencoder = BinaryAutoencoder(settings.tokenizer).to(accelerator.device)
        config = settings.objective
        adaptive = config.adversarial > 0 and config.adversarial_weight == "adaptive"
        if adaptive and settings.parallel == "fsdp" and accelerator.num_processes > 1:
            raise SettingError(
                "objective.adversarial_weight=adaptive compares gradients of one whole layer, which parallel=fsdp "
                "spreads over the processes: set one of them to fixed or ddp."
            )
        config.check(settings.tokenizer.image_size)
        self.discriminator = None
        if config.adversarial > 0:
            self.discriminator = PatchDiscriminator(
                config.discriminator_channels, config.discriminator_layers, settings.tokenizer.in_channels
            ).to(accelerator.device)
        self.objective = ReconstructionObjective(config).to(accelerator.device)

    def networks(self) -> dict[str, nn.Module]:
        """The tokenizer, and the discriminator if there is one."""
        both: dict[str, nn.Module] = {"tokenizer": self.model}
        return both if self.discriminator is None else {**both, "discriminator": self.discriminator}

    def begin_from(self, origin: Origin) -> str:
        """Take over the weights of another tokenizer; a discriminator begins anew."""
        return init_tokenizer(self.model, origin)

    def batches(self, first_step: int, taken: int | None = None) -> Iterator[tuple[Tensor, range]]:
        """Pairs of images, uint8 (B, 3, H, W), and their positions in the order of the whole training."""
        B, seed = self.training.batch_size, self.settings.seed
        order = KeyedOrder(len(self.train_images), B, seed, "tokenizer-order", first_step, taken)

        def positions() -> Iterator[range]:
            for step in itertools.count(first_step):
                yield from (order.positions(step, *part) for part in self.parts())

        def wanted() -> Iterator[tuple[list[int], list[int]]]:
            for mine in positions():
                yield order.indices(mine).tolist(), [derive_seed(seed, "tokenizer-view", p) for p in mine]

        loader = self.train_images.loader(wanted(), workers=self.settings.data.workers)
        return zip(loader, positions(), strict=False)

    def train_step(self, batch: tuple[Tensor, range], step: int, progress: float, update: Update) -> dict[str, Tensor]:
        """Reconstruct, compare, update; then the discriminator, once its time has come."""
        images = to_unit(batch[0].to(self.accelerator.device, non_blocking=True))
        noise = self.model.draw_noise(len(images), keyed_draws(self.settings.seed, "tokenizer-bits", batch[1]))
        flips = self._flips(batch[1], progress)
        scale = self.objective.config.adversarial_scale(progress) if self.discriminator is not None else 0.0
        fake_logits = None
        with self.accelerator.autocast():
            out = self.prepared[self.name](images, noise, flips=flips)
            if scale > 0 and self.discriminator is not None:
                self.discriminator.requires_grad_(False)  # the tokenizer's step is not the discriminator's
                fake_logits = self.discriminator(out.reconstruction)
        loss = self.objective(
            out.reconstruction, images, out.probs, fake_logits, self.model.decoder.last_layer, scale, out.penalties
        )
        values = {"loss": loss.total.detach(), **loss.terms, **self.model.bottleneck.metrics(out.bits)}
        update("tokenizer", loss.total)
        if scale > 0 and self.discriminator is not None:
            self.discriminator.requires_grad_(True)
            values["discriminator"] = self._train_discriminator(images, out.reconstruction.detach(), update)
        return values

    def _flips(self, positions: range, progress: float) -> Tensor | None:
        """Bits (B, h, w, c) for the decoder to see turned over: at each image's own rate, none in half of them."""
        most, shape = self.settings.objective.bit_flips_at(progress), self.model.code_shape
        if most == 0 or not self.model.bottleneck.has_probs:
            return None
        generators = keyed_draws(self.settings.seed, "tokenizer-flips", positions)
        draws = uniform((len(positions), 2 + shape.bits), generators, self.accelerator.device)
        rates = most * draws[:, :1] * (draws[:, 1:2] < 0.5)
        return (draws[:, 2:] < rates).view(-1, *shape)

    def _train_discriminator(self, real: Tensor, fake: Tensor, update: Update) -> Tensor:
        with self.accelerator.autocast():
            real_logits, fake_logits = self.prepared["discriminator"](torch.cat([real, fake])).chunk(2)
        loss = discriminator_hinge(real_logits, fake_logits)
        update("discriminator", loss)
        return loss.detach()

    @torch.no_grad()
    def reconstruct(self, averaged: nn.Module, count: int, drawn: bool = False) -> tuple[Tensor, Tensor]:
        """Some held-out images and their reconstructions, always the same.

        Args:
            averaged: the tokenizer.
            count: the most images to take.
            drawn: whether codes are drawn as the prior sees them, always the same too; else they are the most probable
                ones.

        Returns:
            Images and reconstructions, each float32 (B, 3, H, W) in [-1, 1], on the CPU.
        """
        assert isinstance(averaged, BinaryAutoencoder)
        chosen = torch.tensor(spread(len(self.held_out), count, self.settings.seed))
        pairs = []
        for rows in chosen.split(self.settings.tokenizer.images_at_a_time(AT_A_TIME)):
            images = self.held_out.centre(rows).to(self.accelerator.device)
            with self.accelerator.autocast():
                noise = keyed_draws(self.settings.seed, "held-out-psnr", rows.tolist()) if drawn else None
                again = averaged.decode(averaged.encode(images, noise)) if drawn else averaged(images).reconstruction
            pairs.append((images.cpu(), again.clamp(-1, 1).float().cpu()))
        images, reconstructions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return images, reconstructions

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Mean PSNR of held-out reconstructions, in dB on pixels in [0, 1]: of most probable and of drawn codes."""
        assert isinstance(averaged, BinaryAutoencoder)
        found = {"held_out_psnr": False, "held_out_drawn_psnr": True}
        if not averaged.bottleneck.is_random:
            del found["held_out_drawn_psnr"]
        return {
            name: float(psnr(*self.reconstruct(averaged, MOST_MEASURED, drawn)).mean()) for name, drawn in found.items()
        }

    def preview(self, averaged: nn.Module, path: Path) -> None:
        """Originals over their reconstructions."""
        images, reconstructions = self.reconstruct(averaged, 16)
        save_png(make_pairs(images, reconstructions, scale=max(1, 64 // images.shape[-1])), path)

    def save(self, averaged: nn.Module, early: nn.Module | None) -> None:
        """Write the averaged tokenizer to RUN/tokenizer; a prior of an older one makes no pipeline with it."""
        assert isinstance(averaged, BinaryAutoencoder)
        self.run.index.unlink(missing_ok=True)
        save_model(self.run.tokenizer, averaged)
