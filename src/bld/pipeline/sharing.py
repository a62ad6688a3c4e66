"""Sharing a pipeline: on the hub, with a README.md that shows and describes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bld.data import make_grid, save_png
from bld.diffusion import BernoulliDiffusion
from bld.io.files import as_utf8, written_aside
from bld.io.hub import MESSAGE, Address, prepare, upload
from bld.io.signed import signed
from bld.pipeline.base import PipelineBase
from bld.pipeline.card import LICENCE_UNKNOWN, CardFacts, model_card, sampler_of

CARD_COLUMNS, MOST_CARD_COLUMNS, CARD_ROWS, CARD_PIXELS = 8, 10, 4, 96


class ShareablePipeline(PipelineBase):
    """A pipeline that can be shared."""

    __call__: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = MESSAGE,
        revision: str | None = None,
        create_pr: bool = False,
        license: str = LICENCE_UNKNOWN,
    ) -> Address:
        """Share on the Hugging Face hub, with a README.md that shows and describes the model; returns the address.

        Its `revision` is what `from_pretrained` takes to load what was shared: None on the main branch.

        Only JSON, safetensors, PNG, README.md and the text encoder's vocabulary are uploaded.

        Args:
            repo_id: such as you/flowers; created if missing.
            private: create a private repository; one that is there has to be private already.
            token: access token; by default that of `hf auth login`.
            commit_message: of the commit.
            revision: branch to commit to, created if missing; by default the main branch.
            create_pr: open a pull request instead of committing.
            license: of the weights, a hub identifier such as cc-by-4.0.

        Raises:
            SettingError: for a `repo_id` that is not of the form you/flowers, or a licence that the hub does not know.
            CheckpointError: if the hub refuses or cannot be reached, or if a repository that has to be private is not.
        """
        prepare(repo_id, private=private, token=token, revision=revision, create_pr=create_pr, license=license)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            self.save_card(folder, repo_id, license, revision)
            return upload(
                Path(folder),
                repo_id,
                token=token,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )

    def save_card(
        self, folder: str | Path, repo_id: str, license: str = LICENCE_UNKNOWN, revision: str | None = None
    ) -> None:
        """Write README.md and the pictures it shows into a folder: samples of fixed seeds, nothing picked out.

        Args:
            folder: created if missing.
            repo_id: the name that the page says to load.
            license: of the weights, a hub identifier such as cc-by-4.0.
            revision: the branch that the page says to load; by default the main one.
        """
        folder = Path(folder)
        pictures = self._card_pictures()
        for name, _, picture in pictures:
            save_png(picture, folder / name)
        facts = CardFacts(
            repo_id,
            license,
            self.index.classes if self.prior.config.num_classes else [],
            list(self._card_settings()),
            [(name, caption) for name, caption, _ in pictures],
            self.folder,
            sampler_of(self),
            bool(self.index.text_encoder),
            revision,
        )
        with written_aside(folder / "README.md") as aside:
            aside.write_bytes(signed(as_utf8(model_card(facts))))

    @torch.no_grad()
    def _card_pictures(self) -> list[tuple[str, str, Image.Image]]:
        """(file, caption, picture): samples, and how one comes out of noise."""
        count = self.prior.config.num_classes
        columns = min(count, MOST_CARD_COLUMNS) or CARD_COLUMNS
        labels = [i % columns for i in range(columns * CARD_ROWS)] if count else None
        frames: list[Tensor] = []
        self(1, None if labels is None else [0], generator=0, callback_on_step_end=lambda *seen: _keep(frames, seen))
        images = self(columns * CARD_ROWS, labels, generator=0, output_type="pt").images * 2 - 1
        scale = max(1, CARD_PIXELS // self.tokenizer.config.image_size)
        shown = (
            [frames[round(i * (len(frames) - 1) / (columns - 1))] for i in range(columns)]
            if columns > 1
            else frames[-1:]
        )
        steps = self._decoded(torch.cat(shown), batch_size=len(shown))
        by = ", a class a column" if count else ""
        return [
            ("samples.png", f"The first {len(images)} samples of seed 0{by}", make_grid(images, columns, scale)),
            ("steps.png", "The first of them, from noise to its end", make_grid(steps, columns, scale)),
        ]

    def _card_settings(self) -> Iterator[tuple[str, str]]:
        """(what, how) of the networks."""
        size, shape = self.tokenizer.config.image_size, self.tokenizer.code_shape
        config, defaults = self.prior.config, self.index.sampling
        yield "images", f"{size} × {size} pixels"
        yield "code", f"{shape}, {self.tokenizer.config.code_bytes:,} bytes an image"
        for name, network in zip(("tokenizer", "prior", "guide"), self.networks, strict=False):
            yield f"{name} parameters", f"{sum(p.numel() for p in network.parameters()):,}"
        yield "prior", f"{type(self.prior).__name__}: depth {config.depth}, width {config.dim}, {config.heads} heads"
        if isinstance(self.diffusion, BernoulliDiffusion):
            schedule = self.diffusion.schedule
            yield "diffusion", f"{schedule.kind} schedule, T = {schedule.steps}, predicts {self.diffusion.target}"
            yield "posterior", {"exact": "exact (eq. 8)", "plugin": "plugin (eq. 10)"}[self.diffusion.posterior]
        steps = defaults.num_inference_steps or self.diffusion.steps
        yield "sampling by default", f"{steps} steps, τ = {defaults.temperature}, guidance {defaults.guidance_scale}"


def _keep(frames: list[Tensor], seen: tuple[Any, int, int, dict[str, Tensor]]) -> None:
    """Remember the codes of a step, as a callback is shown them."""
    frames.append(seen[3]["latents"].clone())
