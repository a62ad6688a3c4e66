"""What users hold: a tokenizer, a prior and their diffusion, as one object that generates, inpaints and encodes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bld.autoencoder import BinaryAutoencoder
from bld.checkpoint import (
    PipelineIndex,
    load_index,
    load_prior,
    load_process,
    load_tokenizer,
    save_index,
    save_model,
    save_process,
)
from bld.codes import to_grid, to_tokens
from bld.diffusion import BernoulliDiffusion, with_guidance
from bld.errors import CheckpointError, SettingError, did_you_mean
from bld.images import Preprocessing, center_view, to_pil, to_rgb, to_unit
from bld.priors import Transformer
from bld.process import Process, SamplingStep
from bld.seeding import keyed_generators

OutputType = Literal["pil", "np", "pt", "latent"]
Generators = int | torch.Generator | Sequence[torch.Generator] | None
ImageInput = Image.Image | Sequence[Image.Image] | Tensor
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
    is one of the alternatives.  index: class names and sampling defaults.
    """

    def __init__(
        self,
        tokenizer: BinaryAutoencoder,
        prior: Transformer,
        diffusion: Process,
        index: PipelineIndex | None = None,
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
        self.index = index or PipelineIndex(classes=[str(i) for i in range(prior.config.num_classes)])

    # -- loading and saving -------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> BinaryLatentDiffusionPipeline:
        """Load from a folder (a saved pipeline or a finished run), or from a repository of the Hugging Face hub.

        Weights are safetensors: nothing is unpickled.  Raises `CheckpointError` saying what is missing.
        """
        folder = Path(path_or_hub_id)
        if not folder.is_dir():
            folder = _download(str(path_or_hub_id))
        if not (folder / "model_index.json").is_file():
            raise CheckpointError(
                f"{folder} holds no model_index.json: name a saved pipeline, or a run whose prior is trained."
            )
        return cls(
            load_tokenizer(folder / "tokenizer"),
            load_prior(folder / "prior"),
            load_process(folder / "diffusion"),
            load_index(folder),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model_index.json` and one folder per part, each with `config.json` (and `model.safetensors`)."""
        folder = Path(folder)
        save_model(folder / "tokenizer", self.tokenizer)
        save_model(folder / "prior", self.prior)
        save_process(folder / "diffusion", self.diffusion)
        save_index(folder, self.index, type(self.prior).__name__, type(self.diffusion).__name__)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight of the networks."""
        digest = hashlib.sha256()
        for network in (self.tokenizer, self.prior):
            for name, tensor in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BinaryLatentDiffusionPipeline:
        """Move the networks to a device, a dtype, or both; probabilities stay float32.  Returns itself."""
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
        on_gpu = self.device.type == "cuda"
        self.tokenizer.compile(dynamic=False)
        self.prior.compile(dynamic=False, mode="reduce-overhead" if on_gpu else None)  # which uses CUDA graphs
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
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.tokenizer.config.image_size

    # -- making images ------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        *,
        batch_size: int = 64,
        first_index: int = 0,
        corrector_steps: int = 0,
        reveal: Literal["random", "confidence"] = "random",
    ) -> PipelineOutput:
        """Generate images.

        num_images: 4 by default, or one per label.  class_labels: indices or names, one for all or one per image;
        none leaves the class open.  num_inference_steps: 1 … T denoising steps.  temperature: τ, lower is safer and
        less diverse.  guidance_scale: 1 + ω, 1 is off.  generator: a seed or a torch.Generator (image i depends on it
        and on i alone, not on the batch), or one generator per image.  callback_on_step_end(pipeline, step, t,
        {"latents": codes}) is called after each step.  batch_size: images made at a time.  first_index: number of the
        first image, to make images 100 … 199 of a seed.  corrector_steps: Gibbs redraws per step (Bernoulli only).
        reveal: which positions come next (absorbing only).
        """
        labels = self._labels(class_labels, num_images)
        generators = _generators(generator, len(labels), first_index)
        codes = self._sample(
            labels, generators, num_inference_steps, temperature, guidance_scale,
            callback_on_step_end, batch_size,
            **self._only("bernoulli", corrector_steps=(corrector_steps, 0)),
            **self._only("absorbing", reveal=(reveal, "random")),
        )  # fmt: skip
        return PipelineOutput(self.decode(codes, output_type, batch_size=batch_size), codes)

    @torch.no_grad()
    def inpaint(
        self,
        image: ImageInput,
        mask: Image.Image | np.ndarray | Tensor,
        num_images: int = 1,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        *,
        known_bits: Literal["noised", "clean"] = "noised",
        resample: int = 1,
        batch_size: int = 64,
    ) -> PipelineOutput:
        """Fill the masked part of one image, `num_images` times.

        mask: of the image's shape; white (True, above half) is filled, black is kept.  A latent position is known only
        if none of its pixels is masked; in the result the image's own pixels stand outside the mask.
        known_bits: whether known bits are noised to each step's level ("noised") or clamped ("clean", the public code).
        resample: walks per step; more than one harmonises the border.  The rest is as in a plain call.
        """
        picture = self.preprocess(image)[:1]
        hole = self._mask(mask, image)
        seen = fill_from_surroundings(picture, hole)
        bits = to_tokens(self.tokenizer.encode(seen.to(self.device)))
        factor = self.tokenizer.config.factor
        positions = F.max_pool2d(hole.float()[None, None], factor).flatten() > 0  # (N,), True where bits are made
        labels = self._labels(class_labels, num_images)
        codes = self._sample(
            labels, _generators(generator, len(labels), 0), num_inference_steps, temperature, guidance_scale,
            callback_on_step_end, batch_size, known=bits, mask=positions,
            **self._only("bernoulli", known_bits=(known_bits, "noised"), resample=(resample, 1)),
        )  # fmt: skip
        filled = torch.where(hole, self._decoded(codes, batch_size), picture)
        return PipelineOutput(codes if output_type == "latent" else _output(filled, output_type), codes)

    @torch.no_grad()
    def reconstruct(self, images: ImageInput, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Encode to bits (thresholded) and decode again."""
        return self.decode(self.encode(images, batch_size=batch_size), output_type, batch_size=batch_size)

    @torch.no_grad()
    def encode(self, images: ImageInput, *, batch_size: int = 64) -> Tensor:
        """PIL images, or a tensor (B, 3, S, S) in [-1, 1] → codes (B, h, w, c), uint8 on the CPU."""
        batches = self.preprocess(images).split(self._images_at_a_time(batch_size))
        return torch.cat([self.tokenizer.encode(batch.to(self.device)).cpu() for batch in batches])

    @torch.no_grad()
    def decode(self, codes: Tensor, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Codes (B, h, w, c) of 0 and 1 → images, in the form `output_type` names."""
        return codes if output_type == "latent" else _output(self._decoded(codes, batch_size), output_type)

    @torch.no_grad()
    def likelihood_bits(
        self,
        codes: Tensor,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        draws: int = 1,
        generator: Generators = None,
        *,
        batch_size: int = 64,
    ) -> Tensor:
        """Bits that the prior needs for each code (n, h, w, c), float64 (n,): the sharper its model, the fewer.

        Bernoulli and absorbing diffusion: an unbiased estimate of an upper bound, visiting `num_inference_steps` steps
        (all by default) `draws` times each.  Autoregressive: exact.  Gaussian: `SettingError`, it has no bits.
        """
        labels = self._labels(class_labels, len(codes)).to(self.device)
        generators = _generators(generator, len(codes), 0, purpose="likelihood")
        parts = []
        for start in range(0, len(codes), batch_size):
            rows = slice(start, start + batch_size)
            own = labels[rows]
            bits = self.diffusion.likelihood_bits(
                with_guidance(self.prior, own, own, 1.0),
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
        labels: Tensor,
        generators: list[torch.Generator],
        num_inference_steps: int | None,
        temperature: float | None,
        guidance_scale: float | None,
        callback: StepCallback | None,
        batch_size: int,
        **options: Any,
    ) -> Tensor:
        """Codes (n, h, w, c), uint8 on the CPU, sampled in batches that do not show in the result."""
        defaults, shape = self.index.sampling, self.prior.code_shape
        steps = num_inference_steps if num_inference_steps is not None else defaults.num_inference_steps
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        if scale != 1 and self.prior.config.num_classes == 0:
            raise SettingError(f"guidance_scale={scale} needs a class-conditional prior; this one has no classes.")
        if batch_size < 1:
            raise SettingError(f"batch_size is at least 1, not {batch_size}.")
        observe = None if callback is None else self._observer(callback)
        parts = []
        for start in range(0, len(labels), batch_size):
            batch = labels[start : start + batch_size].to(self.device)
            null = torch.full_like(batch, self.prior.null_label)
            tokens = self.diffusion.sample(
                with_guidance(self.prior.for_sampling(), batch, null, scale),
                (len(batch), shape.positions, shape.c),
                steps=steps,
                temperature=defaults.temperature if temperature is None else temperature,
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
        return lambda step: callback(self, step.index, step.t, {"latents": to_grid(step.codes, shape)})

    def _labels(self, class_labels: int | str | Sequence[int | str] | None, num_images: int | None) -> Tensor:
        """int64 (n,): one label per image, the null label where the class is left open."""
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.tolist()
        many = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        n = num_images if num_images is not None else (len(class_labels) if many else 4)  # type: ignore[arg-type]
        if n < 1:
            raise SettingError(f"The number of images is at least 1, not {n}.")
        if class_labels is None:
            return torch.full((n,), self.prior.null_label)
        wanted = list(class_labels) if many else [class_labels] * n  # type: ignore[arg-type]
        if len(wanted) != n:
            raise SettingError(f"{len(wanted)} class labels were given for {n} images: give one, or one per image.")
        return torch.tensor([self._label(label) for label in wanted])  # type: ignore[arg-type]

    def _label(self, label: int | str) -> int:
        count = self.prior.config.num_classes
        if count == 0:
            raise SettingError(f"Class {label!r} was asked for, but this prior has no classes.")
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if isinstance(label, str) and not label.isdigit():
            raise SettingError(f"Unknown class '{label}'.{did_you_mean(label, self.classes)}")
        if not 0 <= int(label) < count:
            raise SettingError(f"Class {label} lies outside 0 … {count - 1}.")
        return int(label)

    def preprocess(self, images: ImageInput) -> Tensor:
        """(B, 3, S, S) in [-1, 1]; PIL images are turned upright, composited, resized and centre-cropped."""
        if isinstance(images, Tensor):
            images = images.detach().cpu()
            if not images.is_floating_point() or images.min() < -1.001 or images.max() > 1.001:
                raise SettingError(
                    f"An image tensor holds floats in [-1, 1], not {images.dtype} from {images.min():g} to "
                    f"{images.max():g}; of pixels in [0, 1] take 2·x - 1."
                )
            return (images if images.ndim == 4 else images.unsqueeze(0)).float()
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        if not pictures:
            raise SettingError("No images were given.")
        preprocessing = Preprocessing(self.image_size, resample=self.index.resample, background=self.index.background)
        return to_unit(torch.stack([center_view(picture, preprocessing) for picture in pictures]))

    def _mask(self, mask: Image.Image | np.ndarray | Tensor, image: ImageInput) -> Tensor:
        """Bool (S, S), True where pixels are to be made; cropped and resized as the image is."""
        if not isinstance(mask, Image.Image):
            array = np.asarray(mask)
            array = array.squeeze() if array.ndim > 2 else array
            mask = Image.fromarray(
                np.where(array > (127 if array.max(initial=0) > 1 else 0.5), 255, 0).astype(np.uint8)
            )
        first = image if isinstance(image, Image.Image) else None
        if first is not None and mask.size != to_rgb(first, self.index.background).size:
            raise SettingError(f"The mask is {mask.size} pixels and the image {first.size}: they must be equal.")
        view = center_view(mask.convert("L").convert("RGB"), Preprocessing(self.image_size))
        if tuple(view.shape[1:]) != (self.image_size, self.image_size):
            raise SettingError(f"The mask has the shape {tuple(view.shape[1:])}, the image {self.image_size}².")
        hole = view[0] > 127
        if not hole.any():
            raise SettingError("The mask is black everywhere: paint the part to be filled white.")
        return hole


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
        return list(generator)
    if generator is None:
        generator = int(torch.randint(2**62, ()))
    elif isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return keyed_generators(generator, purpose, range(first_index, first_index + count))


def _download(hub_id: str) -> Path:
    """The hub's copy of a pipeline: JSON and safetensors only."""
    if hub_id.count("/") > 1 or hub_id.startswith((".", "/")) or not hub_id:
        raise CheckpointError(f"There is no folder {hub_id}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"There is no folder {hub_id}, and the hub did not give a model of that name "
            f"({type(error).__name__}): check the name and the connection."
        ) from error
