"""What users hold: a tokenizer, a prior and their diffusion, as one object that generates, inpaints and encodes."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bld.codes import to_tokens
from bld.data import Preprocessing
from bld.data.inputs import (
    Pictures,
    network_view,
    network_views,
    opened_pictures,
)
from bld.diffusion import BernoulliDiffusion, with_guidance
from bld.diffusion.process import Process
from bld.diffusion.sampling import Final
from bld.errors import CheckpointError, SettingError
from bld.io.hub import TEXT_ENCODER, download
from bld.nn.text_encoder import TextEncoder
from bld.pipeline.arguments import (
    Generators,
    Labels,
    OutputType,
    PerImage,
    Vectors,
    floating_dtype,
    generators_of,
    to_output,
    whole_number,
)
from bld.pipeline.conditioning import Conditioning, load_text_encoder
from bld.pipeline.masks import fill_from_surroundings, holes_in, kept_pixels, positions_of
from bld.pipeline.sampling import draw_codes, observer
from bld.pipeline.sharing import PushToHubMixin
from bld.priors import Transformer
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


class BinaryLatentDiffusionPipeline(PushToHubMixin):
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

        Weights are safetensors: nothing is unpickled.

        Args:
            path_or_hub_id: the folder, or a repository such as you/flowers.
            revision: of a hub repository: branch, tag or commit.
            token: what lets you into a private one; by default that of `hf auth login`.
            torch_dtype: of the weights, such as torch.float16 or "float16"; None keeps that they were saved in.
            local_files_only: take a hub model's copy on this machine, and ask no network.

        Raises:
            CheckpointError: saying what is missing.
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
        return pipeline if torch_dtype is None else pipeline.to(dtype=floating_dtype(torch_dtype))

    def save_pretrained(self, folder: str | Path, include_text_encoder: bool | None = None) -> None:
        """Write `model_index.json` and one folder per part, each with `config.json` (and `model.safetensors`).

        Args:
            folder: made if it is not there.
            include_text_encoder: whether the text encoder, if there is one, is written too. If not told, one that lies
                in a folder here is, and one of the hub is referred to by its name.
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
        dtype = None if dtype is None else floating_dtype(dtype)
        self.tokenizer.to(device=device, dtype=dtype)
        self.prior.to(device=device, dtype=dtype)
        return self

    def enable_tiling(self, rows: int = 128) -> BinaryLatentDiffusionPipeline:
        """Encode and decode so many rows of a feature map at a time: less memory, the same images.  Returns itself."""
        if rows < 1:
            raise SettingError(f"A tile has 1 row or more, not {rows}.")
        self.tokenizer.tile_rows = rows
        return self

    def disable_tiling(self) -> BinaryLatentDiffusionPipeline:
        """Encode and decode whole images again.  Returns itself."""
        self.tokenizer.tile_rows = None
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

        Raises:
            SettingError: if the prior is not conditioned on text.
            CheckpointError: if the encoder is missing, or another one than in the training.
        """
        if self._text_encoder is None:
            self._text_encoder = load_text_encoder(self.index, self._conditioning.takes)
        return self._text_encoder.to(self.device)

    @property
    def _conditioning(self) -> Conditioning:
        return Conditioning(self.prior, self.index, lambda: self.text_encoder)

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Texts → vectors float32 (n, V), as `condition` takes them."""
        return self._conditioning.encode_prompt(prompt)

    def class_index(self, label: int | str) -> int:
        """The number of a class that is named, or counted from 0.

        A text is a name; of a class that has none of that name it may be the number, unless classes are called by
        numbers.

        Raises:
            SettingError: if there is no such class.
        """
        return self._conditioning.class_index(label)

    @property
    def takes_prompts(self) -> bool:
        """Whether it can be asked for images of a text."""
        return bool(self.index.text_encoder) or self._text_encoder is not None

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

        Args:
            num_images: 4 by default, or one per label, prompt or vector.
            class_labels: indices or names, one for all or one per image; none leaves the class open.
            num_inference_steps: 1 … T denoising steps.
            temperature: τ; lower is safer and less diverse.
            guidance_scale: 1 + ω; 1 is off.
            generator: a seed or a torch.Generator (image i depends on it and on i alone, not on the batch), or one seed
                or generator per image.
            output_type: pil, np, pt or latent; see `PipelineOutput`.
            callback_on_step_end: called after each step as (pipeline, step, t, {"latents": codes}); where it returns a
                dict with other latents, sampling goes on from those (Bernoulli only).
            return_dict: False gives the tuple (images,).
            batch_size: images made at a time, which changes nothing else.
            first_index: number of the first image, to make images 100 … 199 of a seed.
            prompt: a text for all images, or one per image.
            condition: a vector (V,) for all, or (n, V), one per image.
            num_images_per_prompt: so many images of each label, prompt or vector, in a row, in place of num_images.
            corrector_steps: Gibbs redraws per step (Bernoulli only).
            reveal: which positions come next (absorbing only).
            final: how sampling ends, as `bld.sample_codes` has it (Bernoulli only).

        Raises:
            SettingError: naming the value and what is possible.
        """
        asked = self._conditioning.rows(num_images, class_labels, prompt, condition, num_images_per_prompt)
        generators = generators_of(generator, len(asked), first_index)
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

        A latent position is known only if none of its pixels is masked; in the result the image's own pixels stand
        outside the mask. Arguments that are not listed are those of a plain call; labels, prompts, conditions and
        generators are one for all, or one per filling.

        Args:
            image: as for `encode`; of several the fillings follow each other.
            mask: of the image's size, one for all or one per image, as an image, file, array or tensor; white (True,
                above half) is filled, black or transparent is kept.
            num_images: fillings of each image.
            known_bits: noised to each step's level ("noised"), or clamped ("clean", the public code).
            resample: times that each step is taken; more than one harmonises the border.

        Raises:
            SettingError: for a mask of another size, or one that leaves nothing to fill.
        """
        pictures = opened_pictures(image)
        each = whole_number("num_images", num_images, 1)
        holes = holes_in(pictures, mask, self.image_size)
        asked = self._conditioning.rows(each * len(pictures), class_labels, prompt, condition)
        generators = generators_of(generator, len(asked), 0)
        options = self._only(
            "bernoulli", known_bits=(known_bits, "noised"), resample=(resample, 1), final=(final, "threshold")
        )
        prior, made, fillings = self.prior.for_inference(), [], []
        for number, (picture, hole) in enumerate(zip(pictures, holes, strict=True)):
            view, own = network_view(picture, self.preprocessing)[None], slice(number * each, (number + 1) * each)
            bits = to_tokens(self.tokenizer.encode(fill_from_surroundings(view, hole).to(self.device)))
            positions = positions_of(hole, self.tokenizer.config.factor)
            codes = self._sample(
                asked[own], generators[own], num_inference_steps, temperature, guidance_scale,
                callback_on_step_end, batch_size, prior, known=bits, mask=positions, **options,
            )  # fmt: skip
            made.append(codes)
            kept = kept_pixels(picture, view, self.preprocessing)
            fillings.append(torch.where(hole, self._decoded(codes, batch_size), kept))
        codes, filled = torch.cat(made), torch.cat(fillings)
        return _result(codes if output_type == "latent" else to_output(filled, output_type), codes, return_dict)

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

        Arguments that are not listed are those of a plain call.

        Args:
            codes: as `encode` gives them.
            strength: in (0, 1]; the larger, the less of the codes is left, and at 1 nothing is.
            num_inference_steps: of a whole generation; the part of them that lies below t is taken.

        Raises:
            SettingError: for another strength, and for priors other than the Bernoulli diffusion.
        """
        if not isinstance(self.diffusion, BernoulliDiffusion):
            raise SettingError(f"Only the Bernoulli diffusion can vary codes; this prior is {self._kind}.")
        codes = self._codes(codes)
        if not 0 < strength <= 1:
            raise SettingError(f"The strength of a variation lies above 0 and is at most 1, not {strength}.")
        total = self.diffusion.steps
        t = math.ceil(strength * total)
        steps = num_inference_steps or self.index.sampling.num_inference_steps or total
        asked = self._conditioning.rows(len(codes), class_labels, prompt, condition)
        generators = generators_of(generator, len(codes), 0, purpose="vary")
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

        Args:
            images: one or several PIL images, paths, arrays (H, W, 3) or (n, H, W, 3), or tensors (3, H, W) or
                (n, 3, H, W); floats in [0, 1], as this pipeline gives them, or bytes.
            batch_size: images encoded at a time.
        """
        batches = network_views(images, self.preprocessing).split(self._images_at_a_time(batch_size))
        return torch.cat([self.tokenizer.encode(batch.to(self.device)).cpu() for batch in batches])

    @torch.no_grad()
    def decode(self, codes: Tensor, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Codes (B, h, w, c) of 0 and 1 → images, in the form `output_type` names."""
        codes = self._codes(codes)
        return codes if output_type == "latent" else to_output(self._decoded(codes, batch_size), output_type)

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

        Bernoulli and absorbing diffusion give an unbiased estimate of an upper bound, autoregressive the exact number.

        Args:
            codes: as `encode` gives them.
            num_inference_steps: steps visited of the bound; all by default.
            draws: times that each of them is.

        Raises:
            SettingError: for a Gaussian prior, which has no bits.
        """
        codes = self._codes(codes)
        asked = self._conditioning.rows(len(codes), class_labels, prompt, condition).to(self.device)
        generators = generators_of(generator, len(codes), 0, purpose="likelihood")
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
        """How many images to encode or decode at once: with tiles one, since memory is short."""
        return 1 if self.tokenizer.tile_rows else self.tokenizer.config.images_at_a_time(wanted)

    def _sample(
        self,
        asked: Tensor,
        generators: PerImage,
        num_inference_steps: int | None,
        temperature: float | None,
        guidance_scale: float | None,
        callback: StepCallback | None,
        batch_size: int,
        network: Transformer | None = None,
        **options: Any,
    ) -> Tensor:
        observe = None
        if callback is not None:
            own = partial(callback, self)
            observe = observer(own, self.prior.code_shape, self._codes, self._kind)
        return draw_codes(
            self.prior, self.diffusion, asked, generators, self.index.sampling, num_inference_steps, temperature,
            guidance_scale, observe, batch_size, network, **options,
        )  # fmt: skip

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


def _result(images: Any, codes: Tensor, return_dict: bool) -> Any:
    return PipelineOutput(images, codes) if return_dict else (images,)
