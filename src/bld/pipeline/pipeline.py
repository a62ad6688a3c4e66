"""What users hold: a tokenizer, a prior and their diffusion, as one object that generates, inpaints and encodes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from bld.codes import to_tokens
from bld.data.inputs import Pictures, network_view, opened_pictures
from bld.diffusion import BernoulliDiffusion, with_guidance
from bld.diffusion.sampling import Final
from bld.errors import SettingError
from bld.numbers import finite_number, whole_number
from bld.pipeline.arguments import (
    Generators,
    Labels,
    OutputType,
    PerImage,
    Vectors,
    generators_of,
    refuse_other_output,
    to_output,
)
from bld.pipeline.masks import fill_from_surroundings, holes_in, kept_pixels, positions_of
from bld.pipeline.sampling import Networks, draw_codes, observer
from bld.pipeline.sharing import ShareablePipeline
from bld.priors import KINDS

StepCallback = Callable[["BinaryLatentDiffusionPipeline", int, int, dict[str, Tensor]], Any]


@dataclass(frozen=True)
class PipelineOutput:
    """Result of a generation.

    Attributes:
        images: in the form of `output_type`: "pil", a list of PIL images; "np", float32 (n, H, W, 3) in [0, 1]; "pt",
            float32 (n, 3, H, W) in [0, 1], on the CPU; "latent", the codes themselves.
        codes: the generated codes, (n, h, w, c) on the CPU: bits, uint8 (float32 for a Gaussian prior).
    """

    images: Any
    codes: Tensor


class BinaryLatentDiffusionPipeline(ShareablePipeline):
    """A trained model: call it to generate images; it also inpaints, varies, encodes and decodes.

    Args:
        tokenizer: the trained network between images and codes.
        prior: the trained network that generates codes.
        diffusion: how the prior generates; a Bernoulli diffusion unless the prior is one of the alternatives.
        index: class names and sampling defaults.
        text_encoder: for prompts; where the index names one it is loaded when it is first needed.
        guide: of a prior without a condition a weaker one of the same codes; guidance leads away from it.
    """

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
        """Generate images (Algorithm 2).

        Args:
            num_images: how many; by default one per entry of a list of labels, prompts or vectors, one for a single
                prompt or vector, else 4.
            class_labels: indices or names, one for all images or one per image; None generates without a class.
            num_inference_steps: denoising steps, 1 … T; by default the model's own number.
            temperature: τ > 0; lower gives safer and less diverse images; by default the model's own.
            guidance_scale: 1 + ω; 1 switches guidance off; by default the model's own. Without classes, prompts and
                vectors it needs a `guide`, which training with `prior.guide` keeps.
            generator: a seed, a torch.Generator, or one of either per image; None takes a random seed. With one seed,
                image i depends on the seed and on i only, not on the batch.
            output_type: "pil", "np", "pt" or "latent"; see `PipelineOutput`.
            callback_on_step_end: called after each step of each batch as (pipeline, step, t, {"latents": codes}), with
                step = 0, 1, …, t the step just left, and codes (b, h, w, c) of the batch. If it returns a dict with
                other "latents", sampling continues from those (Bernoulli only).
            return_dict: False returns the tuple (images,).
            batch_size: images per batch; it does not change the images (on a GPU, and with an autoregressive prior,
                up to rounding).
            first_index: index of the first image: with 100 and num_images=100, images 100 … 199 of the seed.
            prompt: a text for all images, or one per image.
            condition: a vector (V,) for all images, or (n, V), one per image.
            num_images_per_prompt: images per label, prompt or vector, consecutive; used instead of num_images.
            corrector_steps: Gibbs corrector steps per denoising step (Bernoulli only).
            reveal: order in which positions are revealed (absorbing only).
            final: how sampling ends, as for `bld.sample_codes` (Bernoulli only).

        Returns:
            The images and their codes, a `PipelineOutput`.

        Raises:
            SettingError: for a value that is not possible; the message says what is.
            DataError: if `condition` holds values that are not finite.
        """
        refuse_other_output(output_type)
        asked = self._conditioning.rows(num_images, class_labels, prompt, condition, num_images_per_prompt)
        generators = generators_of(generator, len(asked), first_index)
        codes = self._sample(
            asked, generators, num_inference_steps, temperature, guidance_scale,
            callback_on_step_end, batch_size,
            **self._own(
                corrector_steps=(corrector_steps, 0), final=(final, "threshold"), reveal=(reveal, "random")
            ),
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
        known_bits: Literal["noised", "clean"] = "clean",
        resample: int = 1,
        final: Final = "threshold",
        batch_size: int = 64,
    ) -> PipelineOutput:
        """Fill the masked part of one or several images, `num_images` times each.

        A latent position keeps its bits only if none of its pixels is masked; outside the mask the result has the
        pixels of the image (cropped and resized as by `preprocess`). Arguments not listed are those of a call;
        labels, prompts, conditions and generators are one for all, or one per result.

        Args:
            image: as for `encode`.
            mask: one for all images or one per image, of the image's size, as a PIL image, path, array or tensor; white
                (True, above half) is filled, black or transparent is kept.
            num_images: results per image; those of the first image come first.
            known_bits: "clean" shows the network the known bits as they are, as the paper's public code does;
                "noised" at the noise level of each step, whose fillings fit less well (Bernoulli only).
            resample: times each step is repeated; more than 1 makes borders smoother (Bernoulli only).

        Raises:
            SettingError: for a mask of another size, or one that leaves nothing to fill.
        """
        refuse_other_output(output_type)
        pictures = opened_pictures(image)
        each = whole_number("num_images", num_images, 1)
        holes = holes_in(pictures, mask, self.image_size)
        asked = self._conditioning.rows(each * len(pictures), class_labels, prompt, condition)
        generators = generators_of(generator, len(asked), 0)
        options = self._own(known_bits=(known_bits, "clean"), resample=(resample, 1), final=(final, "threshold"))
        networks, made, fillings = self._networks(guidance_scale), [], []
        for number, (picture, hole) in enumerate(zip(pictures, holes, strict=True)):
            view, own = network_view(picture, self.preprocessing)[None], slice(number * each, (number + 1) * each)
            bits = to_tokens(self.tokenizer.encode(fill_from_surroundings(view, hole).to(self.device)))
            positions = positions_of(hole, self.tokenizer.config.factor)
            codes = self._sample(
                asked[own], generators[own], num_inference_steps, temperature, guidance_scale,
                callback_on_step_end, batch_size, networks, known=bits, mask=positions, **options,
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
        """Generate variations: noise codes to step t = ⌈strength·T⌉ (eq. 5) and denoise them from there.

        Arguments not listed are those of a call.

        Args:
            codes: (n, h, w, c), as `encode` returns them; one variation is made of each.
            strength: in (0, 1]; a larger one keeps less of the codes, and 1 keeps (almost) nothing.
            num_inference_steps: steps of a full generation; ⌈num_inference_steps·t/T⌉ of them are taken.

        Raises:
            SettingError: for a strength outside (0, 1], codes of another shape, or a prior that is not Bernoulli.
        """
        if not isinstance(self.diffusion, BernoulliDiffusion):
            raise SettingError(f"Only the Bernoulli diffusion can vary codes; this prior is {self._kind}.")
        refuse_other_output(output_type)
        codes = self._codes(codes)
        strength = finite_number("strength", strength)
        if not 0 < strength <= 1:
            raise SettingError(f"The strength of a variation lies above 0 and is at most 1, not {strength!r}.")
        total = self.diffusion.steps
        t = math.ceil(strength * total)
        batch_size = whole_number("batch_size", batch_size, 1)
        if num_inference_steps is not None:
            num_inference_steps = whole_number("num_inference_steps", num_inference_steps, 1)
        steps = num_inference_steps or self.index.sampling.num_inference_steps or total
        asked = self._conditioning.rows(len(codes), class_labels, prompt, condition)
        generators = generators_of(generator, len(codes), 0, purpose="vary")
        networks, parts = self._networks(guidance_scale), []
        for first in range(0, len(codes), batch_size):
            rows = slice(first, first + batch_size)
            own = generators[rows]  # one object, so that the first reverse step draws on from where the noise ended
            z_t = self.diffusion.diffuse(to_tokens(codes[rows]).to(self.device), t, own)
            made = self._sample(
                asked[rows], own, math.ceil(steps * t / total), temperature, guidance_scale,
                callback_on_step_end, batch_size, networks, start=(z_t, t),
            )  # fmt: skip
            parts.append(made)
        varied = torch.cat(parts)
        return _result(self.decode(varied, output_type, batch_size=batch_size), varied, return_dict)

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
        """Code length of each code under the prior, -log₂ p(z), in bits: float64 (n,) on the CPU; lower is better.

        Diffusion priors (bernoulli, absorbing) give an unbiased estimate of an upper bound (eq. 7), autoregressive
        priors the exact value. Arguments not listed are those of a call.

        Args:
            codes: (n, h, w, c), as `encode` returns them.
            num_inference_steps: bound of the sampler that takes this many steps; all T by default.
            draws: noise draws per step; more make the estimate less noisy.

        Raises:
            SettingError: for a Gaussian prior, which models real numbers, or a number of steps that it cannot take.
        """
        codes = self._codes(codes)
        batch_size = whole_number("batch_size", batch_size, 1)
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

    def with_posterior(self, posterior: Literal["exact", "plugin"]) -> Self:
        """A copy of this pipeline (sharing its networks) that samples with another posterior: "exact" is eq. (8).

        "plugin" is eq. (10); see `bld.BernoulliDiffusion`. Raises `SettingError` if the prior is not Bernoulli.
        """
        if not isinstance(self.diffusion, BernoulliDiffusion):
            raise SettingError(f"Only the Bernoulli diffusion has posteriors to choose; this prior is {self._kind}.")
        other = copy.copy(self)
        other.diffusion = self.diffusion.from_settings(**{**self.diffusion.settings(), "posterior": posterior})
        return other

    # -- pieces -------------------------------------------------------------------------------------------

    def _sample(
        self,
        asked: Tensor,
        generators: PerImage,
        num_inference_steps: int | None,
        temperature: float | None,
        guidance_scale: float | None,
        callback: StepCallback | None,
        batch_size: int,
        networks: Networks | None = None,
        **options: Any,
    ) -> Tensor:
        observe = None
        if callback is not None:
            own = partial(callback, self)
            observe = observer(own, self.prior.code_shape, self._codes, self._kind)
        return draw_codes(
            networks or self._networks(guidance_scale), self.diffusion, asked, generators, self.index.sampling,
            num_inference_steps, temperature, guidance_scale, observe, batch_size, **options,
        )  # fmt: skip

    def _networks(self, guidance_scale: float | None) -> Networks:
        """What draws codes; the guide only where it is asked."""
        is_guided = self.index.sampling.guidance(guidance_scale) != 1
        return Networks.of(self.prior, self.guide if is_guided else None)

    def _own(self, **options: tuple[Any, Any]) -> dict[str, Any]:
        """Those of the options (value, default) that this kind of prior has; asking it for another's is refused."""
        own = KINDS[self._kind].options
        for name, (value, default) in options.items():
            if name not in own and value != default:
                theirs = " and ".join(kind.name for kind in KINDS.values() if name in kind.options)
                raise SettingError(f"{name} belongs to the {theirs} prior; this one is {self._kind}: leave it out.")
        return {name: value for name, (value, _) in options.items() if name in own}


def _result(images: Any, codes: Tensor, return_dict: bool) -> Any:
    return PipelineOutput(images, codes) if return_dict else (images,)
