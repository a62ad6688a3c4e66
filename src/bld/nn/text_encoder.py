"""A frozen text encoder: texts → vectors, by the text model of a CLIP.

The vector is the model's pooled output, that of the end token after the last norm. Every CLIP has it, with or without
the projection into the space that it shares with images. Leaving the projection out loses nothing: it is linear, and a
prior begins with a trained linear map of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bld.errors import CheckpointError, MissingPackageError

AT_A_TIME = 256
CLIPS = ("clip", "clip_text_model")


class TextEncoder:
    """Texts → vectors (n, V), float32.

    Args:
        model: a CLIPTextModel; it is put into evaluation mode and frozen.
        tokenizer: its own.
        name: where it came from.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = ""):
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name

    @classmethod
    def load(cls, name: str | Path) -> TextEncoder:
        """Load from a local folder, or by name from the Hugging Face hub.

        Weights are safetensors: nothing is unpickled.

        Args:
            name: the folder, or a name such as openai/clip-vit-large-patch14.

        Raises:
            CheckpointError: if there is no such CLIP.
            MissingPackageError: without transformers.
        """
        transformers = _transformers()
        with _told_in_one_sentence(name), _quiet(transformers, Path(name).is_dir()):
            _clip_config(name)
            model = transformers.CLIPTextModel.from_pretrained(name, use_safetensors=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token  # what follows the end token is not seen
        return cls(model, tokenizer, str(name))

    @property
    def width(self) -> int:
        """V."""
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts → (n, V), float32 on the CPU.  What is longer than the model reads (77 tokens) is cut off."""
        most = int(self.model.config.max_position_embeddings)
        device = self.model.device
        parts = [torch.zeros(0, self.width)]
        for start in range(0, len(texts), AT_A_TIME):
            some = list(texts[start : start + AT_A_TIME])
            words = self.tokenizer(some, padding=True, truncation=True, max_length=most, return_tensors="pt")
            words = {key: words[key].to(device) for key in ("input_ids", "attention_mask")}
            with torch.autocast(device.type, enabled=False):
                parts.append(self.model(**words).pooler_output.float().cpu())
        return torch.cat(parts)

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the model; returns itself."""
        self.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, as transformers reads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight and with the vocabulary."""
        # Sorted by content: the names of the weights are a matter of transformers' version.
        weights = sorted(
            hashlib.sha256(parameter.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
            for parameter in self.model.parameters()
        )
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(json.dumps([weights, words]).encode()).hexdigest()[:16]


def text_width(name: str) -> int:
    """V of the encoder of that name, from its config alone.

    Raises:
        CheckpointError: if there is no such CLIP.
        MissingPackageError: without transformers.
    """
    _transformers()  # whose absence has a sentence of its own
    with _told_in_one_sentence(name):
        config = _clip_config(name)
    return int(getattr(config, "text_config", config).hidden_size)


def _clip_config(name: str | Path) -> Any:
    config = _transformers().AutoConfig.from_pretrained(name)
    if config.model_type not in CLIPS:
        raise CheckpointError(
            f"{name} is a model of the kind {config.model_type}, where the text model of a CLIP is wanted: "
            "name one, such as openai/clip-vit-large-patch14."
        )
    return config


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            "Conditioning on text needs transformers: pip install 'binary-latent-diffusion[text]'."
        ) from error
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any, is_local: bool) -> Iterator[None]:
    """Without remarks on the half of a CLIP that is left out, and with a progress bar for downloads only."""
    logging = transformers.utils.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if is_local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _told_in_one_sentence(name: str | Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the network, the hub and damaged files can raise anything
        reason = str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
        raise CheckpointError(
            f"The text encoder {name} cannot be loaded ({reason}): name a folder with the text model of a CLIP as "
            "safetensors, or one of the hub, such as openai/clip-vit-large-patch14."
        ) from error
