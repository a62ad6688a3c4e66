"""What the samples of an evaluation are asked to show: what the data shows, as often as the data shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bld.data import ImageSet
from bld.errors import SettingError
from bld.evaluation.held_out_conditions import held_out_vectors
from bld.evaluation.load_run import OpenedRun
from bld.pipeline import BinaryLatentDiffusionPipeline

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Asked:
    """The condition of each sample by its number, whatever the number of samples.

    Without labels and vectors nothing is asked for.

    Attributes:
        described: for the record, all that decides the conditions.
        labels: int64 (n,), of which sample i takes one.
        in_turn: whether labels are taken one after the other; else they are spread, so that any number of samples has
            each label in the share that it has of `labels`.
        vectors: float32 (n, V), taken in turn.
        vectors_of: indices of the unseen images that the vectors belong to, int64 (n,), where they do.
    """

    described: str
    labels: Tensor | None = None
    in_turn: bool = True
    vectors: Tensor | None = None
    vectors_of: Tensor | None = None

    def of(self, start: int, stop: int) -> dict[str, Any]:
        """The pipeline's arguments for samples start … stop - 1."""
        if self.vectors is not None:
            return {"condition": self.vectors[torch.arange(start, stop) % len(self.vectors)]}
        labels = self.labels_of(start, stop)
        return {} if labels is None else {"class_labels": labels}

    def labels_of(self, start: int, stop: int) -> list[int] | None:
        """The classes of samples start … stop - 1; None where they have none."""
        if self.labels is None:
            return None
        number = np.arange(start, stop)
        rows = number if self.in_turn else (np.modf((number + 1) * GOLDEN)[0] * len(self.labels)).astype(np.int64)
        return self.labels[torch.from_numpy(rows % len(self.labels))].tolist()


def asked_for(
    pipeline: BinaryLatentDiffusionPipeline,
    classes: Sequence[str],
    reference: ImageSet,
    opened: OpenedRun | None = None,
) -> Asked:
    """What samples are asked for.

    Args:
        pipeline: what is sampled.
        classes: names, taken in turn; ["all"] for every one; ["none"] leaves the class open. [] draws classes as the
            reference images have them (all in turn where those have others, or none), or takes the captions or vectors
            of the run's held-out images in turn.
        reference: the real images that samples are compared with.
        opened: the run, for its captions or vectors.

    Raises:
        SettingError: for classes that the prior does not know.
    """
    count = pipeline.prior.config.num_classes
    if classes and not count:
        raise SettingError(f"--classes {','.join(classes)} was given, but this prior has no classes: leave it out.")
    if list(classes) == ["none"] and "none" not in pipeline.classes:
        return Asked("no class")
    if list(classes) == ["all"] and "all" not in pipeline.classes:
        return Asked("all classes in turn", torch.arange(count))
    if classes:
        return Asked(",".join(classes), torch.tensor([pipeline.class_index(name) for name in classes]))
    if count:
        if reference.labels is None or reference.classes != pipeline.classes:
            return Asked("all classes in turn", torch.arange(count))
        labels = reference.labels.sort().values
        return Asked(f"classes as the reference has them ({_digest(labels)})", labels, in_turn=False)
    if pipeline.prior.config.condition_dim:
        found = None if opened is None else held_out_vectors(opened)
        if found is None:
            return Asked("no condition: the run's held-out captions or vectors are not at hand")
        what = "captions" if pipeline.index.text_encoder else "vectors"
        images, vectors = found
        described = f"{what} of {len(images)} held-out images in turn ({_digest(vectors)})"
        return Asked(described, vectors=vectors, vectors_of=images)
    return Asked("nothing")


def _digest(values: Tensor) -> str:
    return hashlib.blake2b(values.contiguous().numpy().tobytes(), digest_size=6).hexdigest()
