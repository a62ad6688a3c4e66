"""What users hold: a tokenizer, a prior and their diffusion, as one object that generates, inpaints and encodes."""

from __future__ import annotations

import copy
import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bld.codes import to_grid, to_tokens
from bld.data import Preprocessing, make_grid, save_png, to_pil
from bld.data.inputs import (
    Pictures,
    has_size,
    mask_view,
    network_view,
    network_views,
    opened_masks,
    opened_pictures,
    size_of,
)
from bld.diffusion import BernoulliDiffusion, with_guidance
from bld.diffusion.process import Process, SamplingStep
from bld.diffusion.sampling import Final
from bld.errors import CheckpointError, DataError, SettingError, did_you_mean
from bld.io.files import written_aside
from bld.io.hub import TEXT_ENCODER, download, upload
from bld.nn.text_encoder import TextEncoder
from bld.pipeline.card import LICENCE_UNKNOWN, CardFacts, model_card
from bld.priors import Transformer
from bld.seeding import keyed_generators
from bld.serialization.models import (
    PipelineIndex,
    load_index,
    load_prior,
    load_process,
    load_tokenizer,
    save_index,
    save_model,
    save_process,
)
from bld.tokenizer import BinaryAutoencoder

CARD_COLUMNS, MOST_CARD_COLUMNS, CARD_ROWS, CARD_PIXELS = 8, 10, 4, 96

OutputType = Literal["pil", "np", "pt", "latent"]
Generators = int | torch.Generator | Sequence[torch.Generator | int] | None
Labels = int | str | Sequence[int | str] | None
Vectors = np.ndarray | Tensor | Sequence[float] | None
StepCallback = Callable[["BinaryLatentDiffusionPipeline", int, int, dict[str, Tensor]], Any]


@dataclass(frozen=True)
class PipelineOutput:
    """Result of a generation.

    images: by `output_type`: a list of PIL images; "np" float32 (n, H, W, 3) in [0, 1]; "pt" float32 (n, 3, H, W) in
        [0, 1]; "latent" the codes themselves.
    codes: the bits that were drawn, (n, h, w, c) uint8.
    """

    images: Any
    codes: Tensor


class BinaryLatentDiffusionPipeline:
    """Generate, inpaint, reconstruct, encode and decode.

    tokenizer, prior: the trained networks.  diffusion: how the prior generates; a Bernoulli diffusion unless the prior
    is one of the alternatives.  index: class names and sampling defaults.  text_encoder: for prompts; where the index
    names one it is loaded when it is first needed.
    """

    def __init__(
        self,
        tokenizer: BinaryAutoencoder,
        prior: Transformer,
        diffusion: Process,
        index: PipelineIndex | None = None,
        text_encoder: TextEncoder | None = None,
    ):
        if tokenizer.code_shape != prior.code_shape:
            raise SettingError(
                f"The tokenizer makes codes of {tokenizer.code_shape}, the prior wants {prior.code_shape}: "
                "they were not trained together."
            )
        if diffusion.steps != prior.config.steps:
            raise SettingError(
                f"The prior was trained for {prior.config.steps} steps, the diffusion has {diffusion.steps}."
            )
        self.tokenizer, self.prior, self.diffusion = tokenizer.eval(), prior.eval(), diffusion
        self.folder: Path | None = None  # where it was loaded from
        self.index = index or PipelineIndex(classes=[str(i) for i in range(prior.config.num_classes)])
        self._text_encoder = text_encoder

    # -- loading and saving -------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        local_files_only: bool = False,
    ) -> BinaryLatentDiffusionPipeline:
        """Load from a folder (a saved pipeline or a finished run), or from a repository of the Hugging Face hub.

        revision, token: of a hub repository: branch, tag or commit; and what lets you into a private one (by default
        that of `hf auth login`).  torch_dtype: of the weights, such as torch.float16 or "float16"; None keeps that they
        were saved in.  local_files_only: take a hub model's copy on this machine, and ask no network.
        Weights are safetensors: nothing is unpickled.  Raises `CheckpointError` saying what is missing.
        """
        folder = Path(path_or_hub_id)
        if not folder.is_dir():
            folder = download(str(path_or_hub_id), revision, token, local_files_only)
        if not (folder / "model_index.json").is_file():
            raise CheckpointError(
                f"{folder} holds no model_index.json: name a saved pipeline, or a run whose prior is trained."
            )
        index = load_index(folder)
        if (folder / TEXT_ENCODER).is_dir():
            index = replace(index, text_encoder=str(folder / TEXT_ENCODER))
        pipeline = cls(
            load_tokenizer(folder / "tokenizer"),
            load_prior(folder / "prior"),
            load_process(folder / "diffusion"),
            index,
        )
        pipeline.folder = folder
        return pipeline if torch_dtype is None else pipeline.to(dtype=_dtype(torch_dtype))

    def save_pretrained(self, folder: str | Path, include_text_encoder: bool | None = None) -> None:
        """Write `model_index.json` and one folder per part, each with `config.json` (and `model.safetensors`).

        include_text_encoder: whether the text encoder, if there is one, is written too.  If not told, one that lies in
            a folder here is, and one of the hub is referred to by its name.
        """
        folder = Path(folder)
        index = self.index
        if include_text_encoder is None:
            include_text_encoder = bool(index.text_encoder) and Path(index.text_encoder).is_dir()
        if include_text_encoder:
            if (folder / TEXT_ENCODER).resolve() != Path(index.text_encoder).resolve():  # else it is there already
                self.text_encoder.save(folder / TEXT_ENCODER)
            index = replace(index, text_encoder=TEXT_ENCODER)
        save_model(folder / "tokenizer", self.tokenizer)
        save_model(folder / "prior", self.prior)
        save_process(folder / "diffusion", self.diffusion)
        save_index(folder, index, type(self.prior).__name__, type(self.diffusion).__name__)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Share a binary latent diffusion model",
        revision: str | None = None,
        create_pr: bool = False,
        license: str = LICENCE_UNKNOWN,
    ) -> str:
        """Share on the Hugging Face hub, with a README.md that shows and describes the model; returns the address.

        repo_id: such as you/flowers; made if it is not there.  token: by default that of `hf auth login`.  revision:
        a branch, made if need be.  create_pr: propose it to the repository's owner instead.  license: of the weights,
        an identifier of the hub such as cc-by-4.0.  Only JSON, safetensors, PNG and the README leave this machine.
        Raises `CheckpointError` where the hub refuses or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            self.save_card(folder, repo_id, license)
            return upload(
                Path(folder),
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )

    def save_card(self, folder: str | Path, repo_id: str, license: str = LICENCE_UNKNOWN) -> None:
        """Write README.md and the pictures it shows into a folder: samples of fixed seeds, nothing picked out."""
        folder = Path(folder)
        pictures = self._card_pictures()
        for name, _, picture in pictures:
            save_png(picture, folder / name)
        facts = CardFacts(
            repo_id,
            license,
            self.classes if self.prior.config.num_classes else [],
            list(self._card_settings()),
            [(name, caption) for name, caption, _ in pictures],
            self.folder,
            bool(self.index.text_encoder),
        )
        with written_aside(folder / "README.md") as aside:
            aside.write_text(model_card(facts), encoding="utf-8")

    @torch.no_grad()
    def _card_pictures(self) -> list[tuple[str, str, Image.Image]]:
        """(file, caption, picture): samples, and how one comes out of noise."""
        count = self.prior.config.num_classes
        columns = min(count, MOST_CARD_COLUMNS) or CARD_COLUMNS
        labels = [i % columns for i in range(columns * CARD_ROWS)] if count else None
        walk: list[Tensor] = []
        self(1, None if labels is None else [0], generator=0, callback_on_step_end=lambda *seen: _keep(walk, seen))
        images = self(columns * CARD_ROWS, labels, generator=0, output_type="pt").images * 2 - 1
        scale = max(1, CARD_PIXELS // self.image_size)
        shown = [walk[round(i * (len(walk) - 1) / (columns - 1))] for i in range(columns)] if columns > 1 else walk[-1:]
        steps = self._decoded(torch.cat(shown), batch_size=len(shown))
        by = ", a class a column" if count else ""
        return [
            ("samples.png", f"The first {len(images)} samples of seed 0{by}", make_grid(images, columns, scale)),
            ("steps.png", "The first of them, from noise to its end", make_grid(steps, columns, scale)),
        ]

    def _card_settings(self) -> Iterator[tuple[str, str]]:
        """(what, how) of the networks."""
        size, shape = self.image_size, self.tokenizer.code_shape
        config, defaults = self.prior.config, self.index.sampling
        yield "images", f"{size} × {size} pixels"
        yield "code", f"{shape}, {self.tokenizer.config.code_bytes:,} bytes an image"
        for name, network in (("tokenizer", self.tokenizer), ("prior", self.prior)):
            yield f"{name} parameters", f"{sum(p.numel() for p in network.parameters()):,}"
        yield "prior", f"{type(self.prior).__name__}: depth {config.depth}, width {config.dim}, {config.heads} heads"
        if isinstance(self.diffusion, BernoulliDiffusion):
            schedule = self.diffusion.schedule
            yield "diffusion", f"{schedule.kind} schedule, T = {schedule.steps}, predicts {self.diffusion.target}"
            yield "posterior", {"exact": "exact (eq. 8)", "plugin": "plugin (eq. 10)"}[self.diffusion.posterior]
        steps = defaults.num_inference_steps or self.diffusion.steps
        yield "sampling by default", f"{steps} steps, τ = {defaults.temperature}, guidance {defaults.guidance_scale}"

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight of the networks."""
        digest = hashlib.sha256()
        for network in (self.tokenizer, self.prior):
            for name, tensor in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None
    ) -> BinaryLatentDiffusionPipeline:
        """Move the networks to a device, a dtype, or both; probabilities stay float32.  Returns itself."""
        dtype = None if dtype is None else _dtype(dtype)
        self.tokenizer.to(device=device, dtype=dtype)
        self.prior.to(device=device, dtype=dtype)
        return self

    def enable_tiling(self, rows: int = 128) -> BinaryLatentDiffusionPipeline:
        """Encode and decode so many rows of a feature map at a time: less memory, the same images.  Returns itself."""
        if rows < 1:
            raise SettingError(f"Strips have 1 row or more, not {rows}.")
        self.tokenizer.strip_rows = rows
        return self

    def disable_tiling(self) -> BinaryLatentDiffusionPipeline:
        """Encode and decode whole images again.  Returns itself."""
        self.tokenizer.strip_rows = None
        return self

    def compile(self) -> BinaryLatentDiffusionPipeline:
        """Run torch.compile's version of the networks from now on.  Returns itself.

        The first call at a batch size takes about a minute; when that pays off `benchmarks/compile.py` measures.
        """
        self.tokenizer.compile(dynamic=False)
        self.prior.compile(dynamic=False)  # not with "reduce-overhead", whose CUDA graphs belong to one thread
        return self

    def with_posterior(self, posterior: Literal["exact", "plugin"]) -> BinaryLatentDiffusionPipeline:
        """The same pipeline sampling with another posterior; the networks are shared."""
        if not isinstance(self.diffusion, BernoulliDiffusion):
            raise SettingError(f"Only the Bernoulli diffusion has posteriors to choose; this prior is {self._kind}.")
        other = copy.copy(self)
        other.diffusion = BernoulliDiffusion(self.diffusion.schedule, self.diffusion.target, posterior)
        return other

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.prior.device

    @property
    def classes(self) -> list[str]:
        """Class names in label order; empty when the prior is unconditional."""
        return self.index.classes

    @property
    def text_encoder(self) -> TextEncoder:
        """What turns prompts into vectors, loaded when it is first asked for.

        Raises `SettingError` where the prior is not conditioned on text, and `CheckpointError` where the encoder is
        missing or another one than in the training.
        """
        if self._text_encoder is None:
            name = self.index.text_encoder
            if not name:
                raise SettingError(
                    f"A prompt was given, but this prior is not conditioned on text: it takes {self._takes}."
                )
            encoder = TextEncoder.load(name)
            if self.index.text_encoder_hash not in ("", encoder.fingerprint()):
                raise CheckpointError(
                    f"The text encoder {name} is not the one this prior was trained with (its weights or words have "
                    f"changed): restore that one, or name its folder as text_encoder in model_index.json."
                )
            self._text_encoder = encoder
        return self._text_encoder.to(self.device)

    @property
    def takes_prompts(self) -> bool:
        """Whether it can be asked for images of a text."""
        return bool(self.index.text_encoder) or self._text_encoder is not None

    @property
    def _takes(self) -> str:
        """What the prior can be asked for, in words."""
        config = self.prior.config
        if config.num_classes:
            return f"one of {config.num_classes} class_labels"
        if not config.condition_dim:
            return "no condition"
        return (
            f"{'a prompt or ' if self.index.text_encoder else ''}vectors of width {config.condition_dim} as condition"
        )

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.tokenizer.config.image_size

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images of the training became squares, and how every picture given does."""
        return Preprocessing(self.image_size, resample=self.index.resample, background=self.index.background)

    # -- making images ------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        class_labels: Labels = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        *,
        return_dict: bool = True,
        batch_size: int = 64,
        first_index: int = 0,
        prompt: str | Sequence[str] | None = None,
        condition: Vectors = None,
        num_images_per_prompt: int = 1,
        corrector_steps: int = 0,
        reveal: Literal["random", "confidence"] = "random",
        final: Final = "threshold",
    ) -> PipelineOutput:
        """Generate images.

        num_images: 4 by default, or one per label, prompt or vector.  class_labels: indices or names, one for all or
        one per image; none leaves the class open.  prompt: a text for all images, or one per image.  condition: a
        vector (V,) for all, or (n, V), one per image.  num_images_per_prompt: so many images of each label, prompt or
        vector, in a row, in place of num_images.  num_inference_steps: 1 … T denoising steps.  temperature: τ, lower is
        safer and less diverse.  guidance_scale: 1 + ω, 1 is off.  generator: a seed or a torch.Generator (image i
        depends on it and on i alone, not on the batch), or one seed or generator per
        image.  callback_on_step_end(pipeline,
        step, t, {"latents": codes}) is called after each step; where it returns a dict with other latents, sampling
        goes on from those (Bernoulli only).  return_dict: False gives the tuple (images,).  batch_size: images made at
        a time, which changes nothing else.  first_index: number of the first image, to make images 100 … 199 of a
        seed.  corrector_steps: Gibbs redraws per step.  final: how sampling ends, as `bld.sample_codes` has it (both
        Bernoulli only).  reveal: which positions come next (absorbing only).
        """
        asked = self._asked(num_images, class_labels, prompt, condition, num_images_per_prompt)
        generators = _generators(generator, len(asked), first_index)
        codes = self._sample(
            asked, generators, num_inference_steps, temperature, guidance_scale,
            callback_on_step_end, batch_size,
            **self._only("bernoulli", corrector_steps=(corrector_steps, 0), final=(final, "threshold")),
            **self._only("absorbing", reveal=(reveal, "random")),
        )  # fmt: skip
        return _result(self.decode(codes, output_type, batch_size=batch_size), codes, return_dict)

    @torch.no_grad()
    def inpaint(
        self,
        image: Pictures,
        mask: Any,
        num_images: int = 1,
        class_labels: Labels = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        condition: Vectors = None,
        return_dict: bool = True,
        known_bits: Literal["noised", "clean"] = "noised",
        resample: int = 1,
        final: Final = "threshold",
        batch_size: int = 64,
    ) -> PipelineOutput:
        """Fill the masked part of an image, or of each of several, `num_images` times.

        image: as for `encode`; of several the fillings follow each other.  mask: of the image's size, one for all or
        one per image, as an image, file, array or tensor; white (True, above half) is filled, black or transparent is
        kept.  A latent position is known only if none of its pixels is masked; in the result the image's own pixels
        stand outside the mask.  class_labels, prompt, condition, generator: one for all, or one per filling.
        known_bits: whether known bits are noised to each step's level ("noised") or clamped ("clean", the public code).
        resample: walks per step; more than one harmonises the border.  The rest is as in a plain call.
        """
        pictures = opened_pictures(image)
        each = _whole("num_images", num_images, 1)
        holes = self._holes(mask, pictures)
        asked = self._asked(each * len(pictures), class_labels, prompt, condition)
        generators = _generators(generator, len(asked), 0)
        options = self._only(
            "bernoulli", known_bits=(known_bits, "noised"), resample=(resample, 1), final=(final, "threshold")
        )
        prior, made, fillings = self.prior.for_inference(), [], []
        for number, (picture, hole) in enumerate(zip(pictures, holes, strict=True)):
            view, own = network_view(picture, self.preprocessing)[None], slice(number * each, (number + 1) * each)
            bits = to_tokens(self.tokenizer.encode(fill_from_surroundings(view, hole).to(self.device)))
            # (N,), True where bits are made
            positions = F.max_pool2d(hole.float()[None, None], self.tokenizer.config.factor).flatten() > 0
            codes = self._sample(
                asked[own], generators[own], num_inference_steps, temperature, guidance_scale,
                callback_on_step_end, batch_size, prior, known=bits, mask=positions, **options,
            )  # fmt: skip
            made.append(codes)
            own_pixels = view  # or, of a tensor that needs no resizing, its own digits
            if isinstance(picture, Tensor) and has_size(picture, self.preprocessing):
                own_pixels = picture[None] * 2 - 1
            fillings.append(torch.where(hole, self._decoded(codes, batch_size), own_pixels))
        codes, filled = torch.cat(made), torch.cat(fillings)
        return _result(codes if output_type == "latent" else _output(filled, output_type), codes, return_dict)

    @torch.no_grad()
    def vary(
        self,
        codes: Tensor,
        strength: float = 0.5,
        class_labels: Labels = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        condition: Vectors = None,
        return_dict: bool = True,
        batch_size: int = 64,
    ) -> PipelineOutput:
        """Noise codes (n, h, w, c) to the step t = ⌈strength·T⌉ (eq. 5) and denoise them from there: images like them.

        strength: in (0, 1]; the larger, the less of the codes is left, and at 1 nothing is.  num_inference_steps: of a
        whole generation; the part of them that lies below t is walked.  The rest is as in a plain call.
        Raises `SettingError` for another strength, and for priors other than the Bernoulli diffusion.
        """
        if not isinstance(self.diffusion, BernoulliDiffusion):
            raise SettingError(f"Only the Bernoulli diffusion can vary codes; this prior is {self._kind}.")
        codes = self._codes(codes)
        if not 0 < strength <= 1:
            raise SettingError(f"The strength of a variation lies above 0 and is at most 1, not {strength}.")
        total = self.diffusion.steps
        t = math.ceil(strength * total)
        steps = num_inference_steps or self.index.sampling.num_inference_steps or total
        asked = self._asked(len(codes), class_labels, prompt, condition)
        generators = _generators(generator, len(codes), 0, purpose="vary")
        prior, parts = self.prior.for_inference(), []
        for first in range(0, len(codes), batch_size):
            rows = slice(first, first + batch_size)
            z_t = self.diffusion.diffuse(to_tokens(codes[rows]).to(self.device), t, generators[rows])
            made = self._sample(
                asked[rows], generators[rows], math.ceil(steps * t / total), temperature, guidance_scale,
                callback_on_step_end, batch_size, prior, start=(z_t, t),
            )  # fmt: skip
            parts.append(made)
        varied = torch.cat(parts)
        return _result(self.decode(varied, output_type, batch_size=batch_size), varied, return_dict)

    @torch.no_grad()
    def reconstruct(self, images: Pictures, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Encode to bits (thresholded) and decode again."""
        return self.decode(self.encode(images, batch_size=batch_size), output_type, batch_size=batch_size)

    @torch.no_grad()
    def encode(self, images: Pictures, *, batch_size: int = 64) -> Tensor:
        """Images → codes (B, h, w, c), uint8 on the CPU.

        images: one or several PIL images, paths, arrays (H, W, 3) or (n, H, W, 3), or tensors (3, H, W) or
        (n, 3, H, W); floats in [0, 1], as this pipeline gives them, or bytes.
        """
        batches = network_views(images, self.preprocessing).split(self._images_at_a_time(batch_size))
        return torch.cat([self.tokenizer.encode(batch.to(self.device)).cpu() for batch in batches])

    @torch.no_grad()
    def decode(self, codes: Tensor, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Codes (B, h, w, c) of 0 and 1 → images, in the form `output_type` names."""
        codes = self._codes(codes)
        return codes if output_type == "latent" else _output(self._decoded(codes, batch_size), output_type)

    @torch.no_grad()
    def likelihood_bits(
        self,
        codes: Tensor,
        class_labels: Labels = None,
        num_inference_steps: int | None = None,
        draws: int = 1,
        generator: Generators = None,
        *,
        prompt: str | Sequence[str] | None = None,
        condition: Vectors = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Bits that the prior needs for each code (n, h, w, c), float64 (n,): the sharper its model, the fewer.

        Bernoulli and absorbing diffusion: an unbiased estimate of an upper bound, visiting `num_inference_steps` steps
        (all by default) `draws` times each.  Autoregressive: exact.  Gaussian: `SettingError`, it has no bits.
        """
        codes = self._codes(codes)
        asked = self._asked(len(codes), class_labels, prompt, condition).to(self.device)
        generators = _generators(generator, len(codes), 0, purpose="likelihood")
        network = self.prior.for_inference()
        parts = []
        for start in range(0, len(codes), batch_size):
            rows = slice(start, start + batch_size)
            own = asked[rows]
            bits = self.diffusion.likelihood_bits(
                with_guidance(network, own, own, 1.0),
                to_tokens(codes[rows]).to(self.device),
                steps=num_inference_steps,
                draws=draws,
                generators=generators[rows],
            )
            parts.append(bits.cpu())
        return torch.cat(parts)

    # -- pieces -------------------------------------------------------------------------------------------

    def _decoded(self, codes: Tensor, batch_size: int) -> Tensor:
        """(B, 3, H, W) in [-1, 1], float32 on the CPU."""
        batches = codes.split(self._images_at_a_time(batch_size))
        return torch.cat([self.tokenizer.decode(batch.to(self.device)).clamp(-1, 1).cpu() for batch in batches])

    def _images_at_a_time(self, wanted: int) -> int:
        """How many images to encode or decode at once: with strips one, since memory is short."""
        return 1 if self.tokenizer.strip_rows else self.tokenizer.config.images_at_a_time(wanted)

    def _sample(
        self,
        asked: Tensor,
        generators: list[torch.Generator],
        num_inference_steps: int | None,
        temperature: float | None,
        guidance_scale: float | None,
        callback: StepCallback | None,
        batch_size: int,
        prior: Transformer | None = None,
        **options: Any,
    ) -> Tensor:
        """Codes (n, h, w, c), uint8 on the CPU, sampled in batches that do not show in the result.

        prior: a copy for inference that several calls share; by default one of the prior as it is now.
        """
        defaults, shape = self.index.sampling, self.prior.code_shape
        steps = num_inference_steps if num_inference_steps is not None else defaults.num_inference_steps
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        if scale != 1 and not self.prior.config.is_conditional:
            raise SettingError(
                f"guidance_scale={scale} needs a conditional prior; this one has no classes, text or vectors."
            )
        tau = defaults.temperature if temperature is None else temperature
        for name, value in (("guidance_scale", scale), ("temperature", tau)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise SettingError(f"{name} is a finite number, not {value!r}.")
        batch_size = _whole("batch_size", batch_size, 1)
        observe = None if callback is None else self._observer(callback)
        network = self.prior.for_inference() if prior is None else prior
        parts = []
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size].to(self.device)
            null = self.prior.no_condition(len(batch), self.device)
            tokens = self.diffusion.sample(
                with_guidance(network.for_sampling(), batch, null, scale),
                (len(batch), shape.positions, shape.c),
                steps=steps,
                temperature=tau,
                generators=generators[start : start + batch_size],
                callback=observe,
                device=self.device,
                **{"known": None, "mask": None, **options},
            )
            parts.append(to_grid(tokens, shape).cpu())
        return torch.cat(parts)

    @property
    def _kind(self) -> str:
        return self.diffusion.kind

    def _only(self, kind: str, **options: tuple[Any, Any]) -> dict[str, Any]:
        """The options (value, default) of one kind of prior; asking another kind for them is refused."""
        if self._kind == kind:
            return {name: value for name, (value, _) in options.items()}
        for name, (value, default) in options.items():
            if value != default:
                raise SettingError(f"{name} belongs to the {kind} prior; this one is {self._kind}: leave it out.")
        return {}

    def _observer(self, callback: StepCallback) -> Callable[[SamplingStep], None]:
        shape = self.prior.code_shape

        def observe(step: SamplingStep) -> None:
            latents = to_grid(step.codes, shape)
            changed = callback(self, step.index, step.t, {"latents": latents})
            other = changed.get("latents", latents) if isinstance(changed, dict) else latents
            if other is latents:
                return
            if self._kind != "bernoulli":
                raise SettingError(
                    f"A callback may change the latents of the Bernoulli prior; this one is {self._kind}."
                )
            shape_given = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
            if shape_given != tuple(latents.shape):
                raise SettingError(f"A callback gave latents of {shape_given}, not {tuple(latents.shape)}.")
            step.codes.copy_(to_tokens(self._codes(other)))  # the sampler's own, from which it goes on

        return observe

    def _asked(
        self,
        num_images: int | None,
        class_labels: Labels,
        prompt: str | Sequence[str] | None = None,
        condition: Vectors = None,
        each: int = 1,
    ) -> Tensor:
        """What the prior is asked for, one row per image: labels int64 (n,), or vectors float32 (n, 1 + V)."""
        given = {"class_labels": class_labels, "prompt": prompt, "condition": condition}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise SettingError(f"{' and '.join(names)} were given: an image is conditioned on one of them.")
        each = _whole("num_images_per_prompt", each)
        if each < 1 or (each > 1 and (not names or num_images is not None)):
            raise SettingError(
                f"num_images_per_prompt={each} makes so many images of each prompt, label or vector: it is at least 1, "
                "needs one of these, and takes the place of num_images."
            )
        if prompt is None and condition is None:
            return self._labels(class_labels, num_images).repeat_interleave(each, 0)
        rows = self.encode_prompt(prompt) if prompt is not None else self._vectors(condition)
        if isinstance(prompt, str) or (condition is not None and np.ndim(condition) == 1):
            each = each if num_images is None else num_images
            if each < 1:
                raise SettingError(f"The number of images is at least 1, not {each}.")
        elif num_images not in (None, len(rows)):
            raise SettingError(
                f"{len(rows)} {names[0]}s were given for {num_images} images: give one, or one per image."
            )
        asked = F.pad(rows, (1, 0), value=1)
        if prompt is not None:  # an empty one is none, as an image without a caption was in the training
            texts = [prompt] if isinstance(prompt, str) else prompt
            asked *= torch.tensor([[bool(text.strip())] for text in texts])
        return asked.repeat_interleave(each, 0)

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Texts → vectors float32 (n, V), as `condition` takes them."""
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise SettingError(f"A prompt is a text or a list of texts, not {prompt!r}: give one, or none at all.")
        return self.text_encoder.encode([" ".join(text.split()) for text in texts])

    def _vectors(self, condition: Any) -> Tensor:
        """float32 (n, V), of the prior's width."""
        width = self.prior.config.condition_dim
        if not width:
            raise SettingError(f"A condition was given, but this prior knows no vectors: it takes {self._takes}.")
        try:
            rows = torch.as_tensor(condition).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SettingError(f"A condition is an array of numbers: this one is not ({error}).") from error
        rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise SettingError(f"A condition of shape {tuple(rows.shape)} was given: give ({width},) or (n, {width}).")
        if not rows.isfinite().all():
            raise DataError("The condition holds values that are not finite numbers: mend them.")
        return rows

    def _labels(self, class_labels: Labels, num_images: int | None) -> Tensor:
        """One label per image, int64 (n,); where it is left open, what stands for no condition."""
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.tolist()
        many = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        n = num_images if num_images is not None else (len(class_labels) if many else 4)  # type: ignore[arg-type]
        n = _whole("num_images", n)
        if n < 1:
            raise SettingError(f"The number of images is at least 1, not {n}.")
        if class_labels is None:
            return self.prior.no_condition(n)
        wanted = list(class_labels) if many else [class_labels] * n  # type: ignore[arg-type]
        if len(wanted) != n:
            raise SettingError(f"{len(wanted)} class labels were given for {n} images: give one, or one per image.")
        return torch.tensor([self.class_index(label) for label in wanted])  # type: ignore[arg-type]

    def class_index(self, label: int | str) -> int:
        """The number of a class that is named, or counted from 0.

        A text is a name; of a class that has none of that name it may be the number, unless classes are called by
        numbers.  Raises `SettingError` where there is no such class.
        """
        count = self.prior.config.num_classes
        if count == 0:
            raise SettingError(f"Class {label!r} was asked for, but this prior has no classes: it takes {self._takes}.")
        if isinstance(label, str):
            if label in self.classes:
                return self.classes.index(label)
            is_number = label.isascii() and label.isdecimal()
            if not is_number or any(name.isdecimal() for name in self.classes):
                raise SettingError(f"Unknown class '{label}'.{did_you_mean(label, self.classes)}")
            label = int(label)
        number = _whole("A class label", label)
        if not 0 <= number < count:
            raise SettingError(f"Class {label} lies outside 0 … {count - 1}.")
        return number

    def _codes(self, codes: Any) -> Tensor:
        """Codes of this tokenizer, (B, h, w, c); `SettingError` for another shape or, of bits, other values."""
        shape = self.tokenizer.code_shape
        if not isinstance(codes, Tensor) or codes.ndim != 4 or tuple(codes.shape[1:]) != (shape.h, shape.w, shape.c):
            given = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise SettingError(f"Codes are a tensor (n, {shape.h}, {shape.w}, {shape.c}), not {given}.")
        if self.tokenizer.is_binary and not bool(((codes == 0) | (codes == 1)).all()):
            raise SettingError("Codes hold the bits 0 and 1, and these hold other values.")
        return codes

    def preprocess(self, images: Pictures) -> Tensor:
        """(B, 3, S, S) in [0, 1]; images are turned upright, laid over the background, resized and centre-cropped."""
        return (network_views(images, self.preprocessing) + 1) / 2

    def _holes(self, mask: Any, pictures: Sequence[Image.Image | Tensor]) -> list[Tensor]:
        """Per picture bool (S, S), True where pixels are to be made; cropped and resized as the picture is."""
        holes, size = [], (self.image_size, self.image_size)
        for picture, whole in zip(pictures, opened_masks(mask, len(pictures)), strict=True):
            mask_size, picture_size = (whole.shape[1], whole.shape[0]), size_of(picture)
            if mask_size != picture_size:
                raise SettingError(f"The mask is {mask_size} pixels and the image {picture_size}: they must be equal.")
            if not whole.any():
                raise SettingError("The mask is black everywhere: paint the part to be filled white.")
            hole = mask_view(whole, size[0])
            if not hole.any():
                raise SettingError("The mask is white only outside the central square, which is all that is made.")
            holes.append(hole)
        return holes


def class_names(text: str, known: Sequence[str]) -> list[str]:
    """The names between commas, none of an empty text; of names with commas in them the longest that is known."""
    parts, names = text.split(",") if text else [], []
    while parts:
        length = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in known), 1)
        names.append(",".join(parts[:length]))
        del parts[:length]
    return names


def fill_from_surroundings(images: Tensor, hole: Tensor) -> Tensor:
    """Replace the pixels in the hole by averages of known ones around it, near ones first.

    images (B, 3, S, S), hole (S, S) bool.  The encoder looks beyond a latent position's own pixels: what the user's
    picture shows inside the hole must not reach the known bits.
    """
    known = (~hole).to(images.dtype)[None, None]
    result = images * known
    filled = known.clone()
    reach = 1
    while bool((filled == 0).any()) and reach < 2 * hole.shape[-1]:
        weight = F.avg_pool2d(known, 2 * reach + 1, 1, reach, count_include_pad=False)
        colour = F.avg_pool2d(images * known, 2 * reach + 1, 1, reach, count_include_pad=False)
        new = (filled == 0) & (weight > 0)
        result = torch.where(new, colour / weight.clamp(min=1e-8), result)
        filled = torch.where(new, torch.ones_like(filled), filled)
        reach *= 2
    return result


def _result(images: Any, codes: Tensor, return_dict: bool) -> Any:
    return PipelineOutput(images, codes) if return_dict else (images,)


def _output(images: Tensor, output_type: OutputType) -> Any:
    """(B, 3, H, W) in [-1, 1] → what the caller asked for."""
    if output_type == "pil":
        return to_pil(images)
    unit = (images + 1) / 2
    if output_type == "pt":
        return unit
    if output_type == "np":
        return unit.permute(0, 2, 3, 1).numpy()
    known = ["pil", "np", "pt", "latent"]
    raise SettingError(f"Unknown output_type '{output_type}'.{did_you_mean(str(output_type), known)}")


def _generators(generator: Generators, count: int, first_index: int, purpose: str = "sample") -> list[torch.Generator]:
    """One generator per image, keyed by (seed, index), unless the caller brought his own."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise SettingError(f"{len(generator)} generators were given for {count} images: give one per image.")
        return [
            one if isinstance(one, torch.Generator) else keyed_generators(_whole("A seed", one), purpose, [0])[0]
            for one in generator
        ]
    if generator is None:
        generator = int(torch.randint(2**62, ()))
    elif isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generator = _whole("A seed", generator)
    return keyed_generators(generator, purpose, range(first_index, first_index + count))


def _keep(walk: list[Tensor], seen: tuple[Any, int, int, dict[str, Tensor]]) -> None:
    """Remember the codes of a step, as a callback is shown them."""
    walk.append(seen[3]["latents"].clone())


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of Python, numpy or torch; `SettingError` for anything else."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise SettingError(f"{name} is a whole number, not {value!r}.") from None
    if least is not None and number < least:
        raise SettingError(f"{name} is at least {least}, not {number}.")
    return number


def _dtype(given: torch.dtype | str) -> torch.dtype:
    """A floating-point type, or one that is named; `SettingError` for anything else."""
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingError(f"torch_dtype is a floating-point type such as float16 or bfloat16, not {given!r}.")
    return found
