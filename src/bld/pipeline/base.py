"""A tokenizer, a prior and its diffusion as one object: loaded, saved and moved; images to codes and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bld.data import Preprocessing
from bld.data.inputs import Pictures, network_views
from bld.diffusion.process import Process
from bld.errors import CheckpointError, SettingError
from bld.io.hub import TEXT_ENCODER, download
from bld.nn.text_encoder import TextEncoder
from bld.numbers import whole_number
from bld.pipeline.arguments import OutputType, floating_dtype, refuse_other_output, to_output
from bld.pipeline.conditioning import Conditioning, load_text_encoder
from bld.priors import Transformer
from bld.serialization.models import (
    GUIDE,
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


class PipelineBase:
    """What a pipeline holds, and what needs nothing but that.

    Args:
        tokenizer: images to codes and back.
        prior: the network that has learned the codes.
        diffusion: how the prior generates.
        index: class names and sampling defaults.
        text_encoder: for prompts; where the index names one it is loaded when it is first needed.
        guide: of a prior without a condition a weaker one of the same codes; guidance leads away from it.
    """

    def __init__(
        self,
        tokenizer: BinaryAutoencoder,
        prior: Transformer,
        diffusion: Process,
        index: PipelineIndex | None = None,
        text_encoder: TextEncoder | None = None,
        guide: Transformer | None = None,
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
        index = index or PipelineIndex(classes=[str(i) for i in range(prior.config.num_classes)])
        if prior.config.num_classes and len(index.classes) != prior.config.num_classes:
            raise SettingError(
                f"The index names {len(index.classes)} classes, the prior knows {prior.config.num_classes}: name each "
                "of them in model_index.json, in the order of their labels."
            )
        if guide is None and not prior.config.is_conditional:
            index = replace(index, sampling=replace(index.sampling, guidance_scale=1.0))  # there is nothing to guide by
        if guide is not None and prior.config.is_conditional:
            raise SettingError("A prior with classes, texts or vectors guides itself: leave the guide out.")
        if guide is not None and _takes(guide) != _takes(prior):
            raise SettingError("The guide is of another kind than the prior, or of other codes or steps.")
        self.tokenizer, self.prior, self.diffusion = tokenizer.eval(), prior.eval(), diffusion
        self.guide = None if guide is None else guide.eval()
        self.folder: Path | None = None  # where it was loaded from
        self.index = index
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
    ) -> Self:
        """Load from a folder (a saved pipeline or a finished run), or from a repository of the Hugging Face hub.

        The networks are in eval mode on the CPU. Weights are safetensors: nothing is unpickled.

        Args:
            path_or_hub_id: the folder, or a hub repository such as you/flowers.
            revision: branch, tag or commit of the hub repository.
            token: access token for a private repository; by default that of `hf auth login`.
            torch_dtype: dtype of the weights, such as torch.float16 or "float16"; None keeps the saved one.
            local_files_only: use the local copy of a hub repository, without network access.

        Raises:
            CheckpointError: if files are missing or damaged, or the hub cannot provide them.
            SettingError: if `torch_dtype` is not a floating-point type.
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
            guide=load_prior(folder / GUIDE) if index.guide else None,
        )
        pipeline.folder = folder
        return pipeline if torch_dtype is None else pipeline.to(dtype=floating_dtype(torch_dtype))

    def save_pretrained(self, folder: str | Path, include_text_encoder: bool | None = None) -> None:
        """Write `model_index.json` and one folder per part, each with `config.json` (and `model.safetensors`).

        Args:
            folder: created if missing.
            include_text_encoder: whether to copy the text encoder, if there is one, into the folder. None copies a
                local one, and refers to one from the hub by its name.
        """
        folder = Path(folder)
        index = replace(self.index, guide=self.guide is not None)
        if include_text_encoder is None:
            include_text_encoder = bool(index.text_encoder) and Path(index.text_encoder).is_dir()
        if include_text_encoder and self.takes_prompts:
            if (folder / TEXT_ENCODER).resolve() != Path(index.text_encoder).resolve():  # else it is there already
                self.text_encoder.save(folder / TEXT_ENCODER)
            index = replace(index, text_encoder=TEXT_ENCODER)
        save_model(folder / "tokenizer", self.tokenizer)
        save_model(folder / "prior", self.prior)
        if self.guide is not None:
            save_model(folder / GUIDE, self.guide)
        save_process(folder / "diffusion", self.diffusion)
        save_index(folder, index, type(self.prior).__name__, type(self.diffusion).__name__)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight of the networks."""
        digest = hashlib.sha256()
        for network in self.networks:
            for name, tensor in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> Self:
        """Move the networks to a device, a dtype, or both; probabilities stay float32.  Returns itself."""
        dtype = None if dtype is None else floating_dtype(dtype)
        for network in self.networks:
            network.to(device=device, dtype=dtype)
        return self

    def enable_tiling(self, rows: int = 128) -> Self:
        """Encode and decode in tiles of `rows` feature-map rows: less memory, the same images.  Returns itself.

        Raises `SettingError` if `rows` is less than 1.
        """
        if whole_number("rows", rows) < 1:
            raise SettingError(f"A tile has 1 row or more, not {rows}.")
        self.tokenizer.tile_rows = int(rows)
        return self

    def disable_tiling(self) -> Self:
        """Encode and decode whole images again.  Returns itself."""
        self.tokenizer.tile_rows = None
        return self

    def compile(self) -> Self:
        """Compile the networks with torch.compile.  Returns itself.

        The first call at each batch size takes about a minute; `benchmarks/compile.py` measures when that pays off.
        """
        for network in self.networks:
            network.compile(dynamic=False)  # not with "reduce-overhead", whose CUDA graphs belong to one thread
        return self

    @property
    def networks(self) -> list[BinaryAutoencoder | Transformer]:
        """Tokenizer, prior, and the guide if there is one."""
        return [self.tokenizer, self.prior, *([] if self.guide is None else [self.guide])]

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
        """The network that turns prompts into vectors; loaded on first use.

        Raises:
            SettingError: if the prior is not conditioned on text.
            CheckpointError: if the encoder is missing, or is not the one the prior was trained with.
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
        """The label, 0 … num_classes - 1, of a class given by name or number.

        A text is first looked up among the class names. If it is none of them, a decimal text such as "3" is taken as
        the label, unless some class has a number as its name.

        Raises:
            SettingError: if there is no such class.
        """
        return self._conditioning.class_index(label)

    @property
    def takes_prompts(self) -> bool:
        """Whether `prompt` can be used: whether the pipeline has a text encoder."""
        return bool(self.index.text_encoder) or self._text_encoder is not None

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.tokenizer.config.image_size

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become squares: centre-cropped, resized and laid over a background, as in training."""
        return Preprocessing(self.image_size, resample=self.index.resample, background=self.index.background)

    # -- images and codes ---------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, images: Pictures, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Encode images and decode the codes again; arguments and errors as for `encode` and `decode`."""
        refuse_other_output(output_type)
        return self.decode(self.encode(images, batch_size=batch_size), output_type, batch_size=batch_size)

    @torch.no_grad()
    def encode(self, images: Pictures, *, batch_size: int = 64) -> Tensor:
        """Images → their most probable codes, (B, h, w, c) on the CPU: uint8 bits (float32 for a Gaussian tokenizer).

        Args:
            images: one or several PIL images, paths, arrays (H, W, 3) or (n, H, W, 3), or tensors (3, H, W) or
                (n, 3, H, W); floats in [0, 1], as this pipeline returns them, or uint8. They are preprocessed as by
                `preprocess`.
            batch_size: images per batch.

        Raises:
            SettingError: for anything else, such as floats outside [0, 1].
            DataError: for a file that cannot be read, or values that are not finite.
        """
        batches = network_views(images, self.preprocessing).split(self._images_at_a_time(batch_size))
        return torch.cat([self.tokenizer.encode(batch.to(self.device)).cpu() for batch in batches])

    @torch.no_grad()
    def decode(self, codes: Tensor, output_type: OutputType = "pil", *, batch_size: int = 64) -> Any:
        """Codes (B, h, w, c), as `encode` returns them → images in the form of `output_type` (see `PipelineOutput`).

        Raises `SettingError` for codes of another shape, or bits other than 0 and 1.
        """
        refuse_other_output(output_type)
        codes = self._codes(codes)
        return codes if output_type == "latent" else to_output(self._decoded(codes, batch_size), output_type)

    def preprocess(self, images: Pictures) -> Tensor:
        """(B, 3, S, S) in [0, 1]; images are turned upright, laid over the background, resized and centre-cropped."""
        return (network_views(images, self.preprocessing) + 1) / 2

    # -- pieces -------------------------------------------------------------------------------------------

    @property
    def _kind(self) -> str:
        return self.diffusion.kind

    def _decoded(self, codes: Tensor, batch_size: int) -> Tensor:
        """(B, 3, H, W) in [-1, 1], float32 on the CPU."""
        batches = codes.split(self._images_at_a_time(batch_size))
        return torch.cat([self.tokenizer.decode(batch.to(self.device)).clamp(-1, 1).cpu() for batch in batches])

    def _images_at_a_time(self, wanted: int) -> int:
        """How many images to encode or decode at once: one where there are tiles, since memory is short."""
        wanted = whole_number("batch_size", wanted, 1)
        return 1 if self.tokenizer.tile_rows else self.tokenizer.config.images_at_a_time(wanted)

    def _codes(self, codes: Any) -> Tensor:
        """Codes of this tokenizer, (B, h, w, c); `SettingError` for another shape or, of bits, other values."""
        shape = self.tokenizer.code_shape
        if not isinstance(codes, Tensor) or codes.ndim != 4 or tuple(codes.shape[1:]) != (shape.h, shape.w, shape.c):
            given = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise SettingError(f"Codes are a tensor (n, {shape.h}, {shape.w}, {shape.c}), not {given}.")
        if not self.tokenizer.is_binary:
            return codes
        if not bool(((codes == 0) | (codes == 1)).all()):
            raise SettingError("Codes hold the bits 0 and 1, and these hold other values.")
        return codes.to(torch.uint8)


def _takes(prior: Transformer) -> tuple[Any, ...]:
    """What a prior is called with, and gives."""
    return type(prior), prior.code_shape, prior.config.steps, prior.config.is_conditional
