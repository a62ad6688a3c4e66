"""Training of a classifier on a data set's own labels, whose features then judge samples without any download."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.data import ImageSet
from bld.errors import DataError, SettingError
from bld.evaluation.features import ClassifierFeatures, SmallResNet
from bld.io.files import read_json
from bld.runtime.precision import in_float32
from bld.seeding import derive_seed, keyed_permutation
from bld.training.checkpoints import CheckpointStore, TrainingState, pack_optimizer, unpack_optimizer
from bld.training.order import KeyedOrder

AT_A_TIME = 256
MOST_JUDGED = 2000
CHECKPOINT_SECONDS = 60.0
NOT_ALWAYS_NOTED = {"flip": False, "crop": "center"}  # settings, with what holds for classifiers that do not tell them


@in_float32()
def train_classifier(
    train: ImageSet,
    held_out: ImageSet,
    out: Path,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    width: int = 32,
    device: torch.device | str = "cpu",
    replace: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> ClassifierFeatures:
    """Train a classifier, measure it on held-out images and save it into `out`.

    Where `out` holds a classifier of the same data and settings, that one is loaded instead, wherever the data lay.
    A training that was stopped goes on, to the same weights: what it needs lies beside `out`, or in it where it is
    there, until it ends.

    Args:
        train: images with classes. They are mirrored where their preprocessing says so.
        held_out: images with the same classes; the accuracy is that on at most 2,000 of them.
        out: folder of the classifier.
        steps: training steps.
        batch_size: images per step.
        learning_rate: its highest value, see `fit`.
        seed: of the weights, the order of the images and their views.
        width: channels of the first layer of the `SmallResNet`.
        device: where it is trained.
        replace: whether another classifier in `out` is replaced.
        say: is handed lines about the progress.

    Raises:
        DataError: for images without classes, or of one class only.
        SettingError: for steps, a batch size or a width below 1, or a learning rate that is not above 0; or for another
            classifier in `out` that is not to be replaced.
    """
    if train.labels is None or held_out.labels is None or len(train.classes) < 2:
        raise DataError(f"{train.location} has no classes to learn: put its images into one folder per class.")
    if min(steps, batch_size, width) < 1 or not learning_rate > 0:
        raise SettingError("Steps, batch size, width and learning rate of a classifier are above 0.")
    settings = {
        "data": _short_name(train.location),
        "fingerprint": train.fingerprint,
        "image_size": train.preprocessing.image_size,
        "classes": train.classes,
        "width": width,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "flip": train.preprocessing.flip,
        "crop": train.preprocessing.crop,
    }
    if (made := _made_so(out, settings, replace, device, say)) is not None:
        return made
    torch.manual_seed(derive_seed(seed, "classifier"))
    network = SmallResNet(train.preprocessing.image_size, len(train.classes), width).to(device)
    order, labels = KeyedOrder(len(train), batch_size, seed, "classifier-order"), train.labels

    def loss(step: int) -> Tensor:
        positions = order.positions(step)
        rows = order.indices(positions)
        images = train.views(rows, [derive_seed(seed, "classifier-view", p) for p in positions])
        return F.cross_entropy(network(images.to(device))[1], labels[rows].to(device), label_smoothing=0.05)

    place = out if out.is_dir() else out.parent  # beside a folder that is there nothing may be writable
    unfinished = CheckpointStore(place / f".{out.name}.unfinished", keep=1)
    fit(network, loss, steps, learning_rate, lambda line: say(f"classifier, {line}"), unfinished, settings)
    accuracy = _accuracy(network.eval(), held_out, device)
    made = ClassifierFeatures(network, {**settings, "held_out_accuracy": accuracy}, device)
    made.save(out)
    unfinished.clear()
    say(f"The classifier in {out} recognises {100 * accuracy:.1f}% of held-out images.")
    return made


def _made_so(
    out: Path, settings: dict[str, Any], replace: bool, device: torch.device | str, say: Callable[[str], None]
) -> ClassifierFeatures | None:
    """The classifier in `out` if it is one of these settings; `SettingError` for another that is not to be replaced."""
    if not (out / "config.json").is_file():
        return None
    before = {**NOT_ALWAYS_NOTED, **read_json(out / "config.json")}
    if all(before.get(name) == value for name, value in settings.items() if name != "data"):  # a name, no contents
        say(f"The classifier in {out} was trained so already: it is used as it is.")
        return ClassifierFeatures.load(out, device)
    if not replace:
        other = ", ".join(name for name, value in settings.items() if before.get(name) != value and name != "data")
        raise SettingError(f"{out} holds a classifier that was trained otherwise ({other}): choose another --out.")
    return None


def fit(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    say: Callable[[str], None],
    unfinished: CheckpointStore,
    made_of: dict[str, Any],
) -> None:
    """Minimise `loss(step)` by AdamW; the rate rises over the first tenth of the steps, and falls as a cosine.

    Args:
        network: changed in place.
        loss: of a step, which all that it draws depends on.
        steps: how many.
        learning_rate: its highest value.
        say: is handed lines about the progress.
        unfinished: where a training that was stopped goes on from; to be cleared once the result is kept.
        made_of: all that the training depends on, as JSON: one of something else is not gone on with.
    """
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    made_of = json.loads(json.dumps(made_of))
    begun = unfinished.latest(say)
    first = 0
    if begun is not None and begun.numbers == made_of:
        first, weights = begun.step, begun.tensors
        network.load_state_dict({name: weights[f"network.{name}"] for name in network.state_dict()})
        unpack_optimizer("optimizer", optimizer, weights)
        say(f"goes on from step {first:,}")
    else:
        unfinished.clear()  # or its later steps would stand before those of this training
    saved = time.monotonic()
    for step in range(first, steps):
        rate = learning_rate * min(1.0, (step + 1) / (0.1 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
            unfinished.save(TrainingState(step + 1, {**tensors, **pack_optimizer("optimizer", optimizer)}, made_of))
            saved = time.monotonic()
        if (step + 1) % 100 == 0:
            say(f"step {step + 1:,} of {steps:,}: loss {float(value.detach()):.3f}")


def _short_name(location: str) -> str:
    """The last part of a path, without its extension."""
    name = Path(location.rstrip("/")).name or location
    return name.split(".")[0]


@torch.no_grad()
def _accuracy(network: SmallResNet, images: ImageSet, device: torch.device | str) -> float:
    """Of at most MOST_JUDGED images, 0 … 1."""
    rows = torch.from_numpy(keyed_permutation(0, "judged", 0, len(images))[:MOST_JUDGED].copy())
    assert images.labels is not None
    right = 0
    for part in rows.split(AT_A_TIME):
        logits = network(images.centre(part).to(device))[1]
        right += int((logits.argmax(1).cpu() == images.labels[part]).sum())
    return right / len(rows)
