"""What a prior is asked for: class labels, prompts and vectors, as users give them → one row per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bld.errors import CheckpointError, DataError, SettingError, did_you_mean
from bld.nn.text_encoder import TextEncoder
from bld.numbers import whole_number
from bld.pipeline.arguments import Labels, Vectors
from bld.priors import Transformer
from bld.serialization.models import PipelineIndex


@dataclass(frozen=True)
class Conditioning:
    """What this prior can be conditioned on.

    Attributes:
        prior: the network.
        index: class names in label order, and the name of the text encoder.
        text_encoder: loads what turns prompts into vectors, or gives the one that is loaded.
    """

    prior: Transformer
    index: PipelineIndex
    text_encoder: Callable[[], TextEncoder]

    @property
    def takes(self) -> str:
        """What the prior can be asked for, in words."""
        config = self.prior.config
        if config.num_classes:
            return f"one of {config.num_classes} class_labels"
        if not config.condition_dim:
            return "no condition"
        return (
            f"{'a prompt or ' if self.index.text_encoder else ''}vectors of width {config.condition_dim} as condition"
        )

    def rows(
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
        num_images = None if num_images is None else whole_number("num_images", num_images)
        each = whole_number("num_images_per_prompt", each)
        if each < 1 or (each > 1 and (not names or num_images is not None)):
            raise SettingError(
                f"num_images_per_prompt={each} makes so many images of each prompt, label or vector: it is at least 1, "
                "needs one of these, and takes the place of num_images."
            )
        if prompt is None and condition is None:
            return self.labels(class_labels, num_images, 4 if each == 1 else 1).repeat_interleave(each, 0)
        rows = self.encode_prompt(prompt) if prompt is not None else self.vectors(condition)
        if isinstance(prompt, str) or (condition is not None and _numbers(condition).ndim == 1):
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
        encoder, texts = self.text_encoder(), [" ".join(text.split()) for text in texts]
        if encoder.model.device.type != "cpu":
            return encoder.encode(texts)
        return torch.cat([encoder.encode([text]) for text in texts])  # beside others a text is rounded otherwise

    def vectors(self, condition: Any) -> Tensor:
        """float32 (n, V), of the prior's width."""
        width = self.prior.config.condition_dim
        if not width:
            raise SettingError(f"A condition was given, but this prior knows no vectors: it takes {self.takes}.")
        rows = _numbers(condition)
        rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise SettingError(f"A condition of shape {tuple(rows.shape)} was given: give ({width},) or (n, {width}).")
        if not rows.isfinite().all():
            raise DataError("The condition holds values that are not finite numbers: fix them.")
        return rows

    def labels(self, class_labels: Labels, num_images: int | None, by_default: int = 4) -> Tensor:
        """One label per image, int64 (n,), or what stands for no condition; of a single label `by_default` images."""
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.tolist()
        many = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        n = num_images if num_images is not None else (len(class_labels) if many else by_default)  # type: ignore[arg-type]
        n = whole_number("num_images", n)
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
            raise SettingError(f"Class {label!r} was asked for, but this prior has no classes: it takes {self.takes}.")
        if isinstance(label, str):
            if label in self.index.classes:
                return self.index.classes.index(label)
            is_number = label.isascii() and label.isdecimal()
            if not is_number or any(name.isdecimal() for name in self.index.classes):
                raise SettingError(f"Unknown class '{label}'.{did_you_mean(label, self.index.classes)}")
            label = int(label)
        number = whole_number("A class label", label)
        if not 0 <= number < count:
            raise SettingError(f"Class {label} lies outside 0 … {count - 1}.")
        return number


def _numbers(condition: Any) -> Tensor:
    """An array, tensor or list of either, float32 on the CPU; `SettingError` for anything else."""
    try:
        if isinstance(condition, Sequence) and any(isinstance(row, Tensor | np.ndarray) for row in condition):
            return torch.stack([_numbers(row) for row in condition])
        return torch.as_tensor(condition).detach().to("cpu", torch.float32)
    except SettingError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise SettingError(f"A condition is an array of numbers: this one is not ({error}).") from error


def load_text_encoder(index: PipelineIndex, takes: str) -> TextEncoder:
    """The text encoder that a saved pipeline names.

    Args:
        index: of the pipeline.
        takes: what its prior can be conditioned on, in words.

    Raises:
        SettingError: if the prior is not conditioned on text.
        CheckpointError: if the encoder is missing, or another one than in the training.
    """
    name = index.text_encoder
    if not name:
        raise SettingError(f"A prompt was given, but this prior is not conditioned on text: it takes {takes}.")
    encoder = TextEncoder.load(name)
    if index.text_encoder_hash not in ("", encoder.fingerprint()):
        raise CheckpointError(
            f"The text encoder {name} is not the one this prior was trained with (its weights or words have "
            f"changed): restore that one, or name its folder as text_encoder in model_index.json."
        )
    return encoder


def class_names(text: str, known: Sequence[str]) -> list[str]:
    """The names between commas, none of an empty text; of names with commas in them the longest that is known."""
    parts, names = text.split(",") if text else [], []
    while parts:
        length = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in known), 1)
        names.append(",".join(parts[:length]))
        del parts[:length]
    return names


def option_words(name: str, value: str) -> list[str]:
    """An option of the command line and its value, as words; as one where the value would be taken for an option."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def class_words(labels: Sequence[int] | None, known: Sequence[str]) -> str | None:
    """What `--classes` is to be for these classes in turn, None for no class; None where no words say it.

    The names, or the numbers where names would be taken for others: as when a comma in one makes two of another.
    """
    if labels is None:
        return "none" if "none" not in known else None
    if list(labels) == list(range(len(known))) and "all" not in known:
        return "all"
    names = ",".join(known[label] for label in labels)
    if class_names(names, known) == [known[label] for label in labels] and (len(labels) > 1 or names):
        return names
    return None if any(name.isdecimal() for name in known) else ",".join(map(str, labels))
