"""Classification accuracy score (Ravuri & Vinyals 2019): a classifier trained on samples, tested on real images."""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.data import ImageSet
from bld.errors import DataError, SettingError
from bld.evaluation.classifier_training import fit
from bld.evaluation.features import SmallResNet
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.runtime.precision import in_float32
from bld.seeding import derive_seed, keyed_generator
from bld.training.checkpoints import CheckpointStore
from bld.training.order import KeyedOrder

BATCH = 64
RATE = 1e-3
SMALL_IMAGES = 64  # pixels; up to here ResNet-50 begins without its stride and pooling, or nothing would be left


def classification_accuracy_score(
    pipeline: BinaryLatentDiffusionPipeline,
    samples: Callable[[int, int], Iterator[Tensor]],
    real: ImageSet,
    num: int,
    labels: Sequence[int] | None,
    folder: Path,
    *,
    steps: int,
    network: str = "resnet50",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Train on samples with the classes they were asked to be, test on real images.

    Args:
        pipeline: what made the samples.
        samples: (start, stop) → uint8 batches of samples start … stop - 1.
        real: images with the prior's classes, to test on.
        num: samples to train on.
        labels: their classes.
        folder: holds the samples in a file, so that memory does not; also what a stopped training goes on from.
        steps: training steps.
        network: "resnet50" (torchvision's) or "small".
        seed: of the classifier's training.
        say: is handed lines about the progress.

    Returns:
        cas_top1 and cas_top5, 0 … 1.

    Raises:
        DataError: where samples have no classes, or real images not those of the prior.
        SettingError: for another network.
    """
    refuse_without_classes(pipeline, real, labels)
    images = on_disk(samples(0, num), num, folder)
    classes = torch.tensor(list(labels or ()))
    model = train_classifier_on(
        images,
        classes,
        len(pipeline.classes),
        steps=steps,
        network=network,
        seed=seed,
        folder=folder,
        say=say,
        device=pipeline.device,
    )
    return accuracy(model, real)


def refuse_without_classes(
    pipeline: BinaryLatentDiffusionPipeline, real: ImageSet, labels: Sequence[int] | None
) -> None:
    """`DataError` where samples have no classes, or real images not those of the prior."""
    if labels is None or pipeline.prior.config.num_classes == 0:
        raise DataError("cas needs a class-conditional prior: this one has no classes to learn from.")
    if real.labels is None or real.classes != pipeline.classes:
        raise DataError(
            f"cas tests on real images with the prior's classes, and {real.location} has "
            f"{'none' if real.labels is None else 'others'}: put its images into one folder per class."
        )


def on_disk(batches: Iterator[Tensor], num: int, folder: Path) -> Tensor:
    """The batches as one tensor that lives in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next(batches)
    shape = (num, *first.shape[1:])
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".cas-") as file:  # the mapping outlives the name
        kept = np.memmap(file.name, dtype=np.uint8, mode="w+", shape=shape)
    start = 0
    for batch in itertools.chain([first], batches):
        kept[start : start + len(batch)] = batch.numpy()
        start += len(batch)
    return torch.from_numpy(kept)


def steps_of(epochs: int, samples: int) -> int:
    """Training steps in which a classifier sees each of so many samples `epochs` times."""
    return math.ceil(epochs * samples / min(BATCH, samples))


@in_float32()
def train_classifier_on(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    steps: int,
    network: str,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A classifier of uint8 images (n, 3, S, S), trained from scratch on a device; images are shown shifted.

    One of the same images and settings that was stopped goes on, from what lies in `folder` until it ends.
    """
    torch.manual_seed(derive_seed(seed, "cas"))
    model = _network(network, images.shape[-1], classes).to(device)
    order = KeyedOrder(len(images), min(BATCH, len(images)), seed, "cas-order")

    def loss(step: int) -> Tensor:
        rows = torch.from_numpy(order.indices(order.positions(step)))
        batch = shifted(images[rows].to(device), keyed_generator(seed, "cas-shift", step))
        return F.cross_entropy(_logits(model, batch), labels[rows].to(device))

    taught = hashlib.sha256(images.contiguous().numpy().data)
    taught.update(labels.numpy().tobytes())
    made_of = {"images": taught.hexdigest(), "classes": classes, "steps": steps, "network": network, "seed": seed}
    unfinished = CheckpointStore(folder / f".cas-{taught.hexdigest()[:12]}-{network}-{steps}-{seed}.unfinished", keep=1)
    fit(model, loss, steps, RATE, lambda line: say(f"cas, {line}"), unfinished, made_of)
    unfinished.clear()
    return model.eval()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, C, S, S) moved by up to S/8 pixels along either axis, its edge repeated: the usual random crop."""
    size, most = images.shape[-1], max(1, images.shape[-1] // 8)
    padded = F.pad(images.float(), (most,) * 4, mode="replicate").to(images.dtype)
    offsets = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([one[:, y : y + size, x : x + size] for one, (y, x) in zip(padded, offsets, strict=True)])


@torch.no_grad()
@in_float32()
def accuracy(model: nn.Module, real: ImageSet) -> dict[str, float]:
    """cas_top1, cas_top5 on all images of a labelled set."""
    assert real.labels is not None
    device = next(model.parameters()).device
    top1 = top5 = 0
    for rows in torch.arange(len(real)).split(256):
        logits = _logits(model, real.uint8_centre(rows).to(device)).float().cpu()
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == real.labels[rows].unsqueeze(1)
        top1, top5 = top1 + int(hits[:, 0].sum()), top5 + int(hits.any(1).sum())
    return {"cas_top1": top1 / len(real), "cas_top5": top5 / len(real)}


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    out = model(images.float() / 127.5 - 1)
    return out[1] if isinstance(out, tuple) else out


def _network(name: str, size: int, classes: int) -> nn.Module:
    if name == "small":
        return SmallResNet(size, classes)
    if name != "resnet50":
        raise SettingError(f"Unknown network '{name}' for cas: resnet50 or small.")
    from torchvision.models import resnet50

    model = resnet50(num_classes=classes)
    if size <= SMALL_IMAGES:
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    return model
