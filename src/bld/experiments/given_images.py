"""What priors do with given images: Figure N, inpainting, and Figure O, nearest training images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bld.data import make_grid
from bld.experiments.comparison import Comparison, Share
from bld.experiments.novelty import UNSEEN_COPIES, Nearness, neighbours_of, samples_of, unseen_nearness
from bld.experiments.page import Findings, Table, machine
from bld.experiments.prior_rows import SAMPLING_SEEDS, Values, over, refuse_without_classes
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling
from bld.experiments.verdict import Gate, mean_and_spread
from bld.seeding import keyed_permutation

GIVEN, FILLINGS, USUAL = 64, 4, Sampling(16)

# -- Figure N ---------------------------------------------------------------------------------------------


def _masks(size: int) -> dict[str, Tensor]:
    """True where pixels are to be made, (S, S): the paper's kinds of pattern."""
    q = size // 4
    whole = torch.zeros(size, size, dtype=torch.bool)
    lower, right, centre, border = (whole.clone() for _ in range(4))
    lower[size // 2 :] = True
    right[:, size // 2 :] = True
    centre[q : size - q, q : size - q] = True
    border[:] = True
    border[q : size - q, q : size - q] = False
    return {"lower half": lower, "right half": right, "centre": centre, "all but the centre": border}


@dataclass(frozen=True)
class Given:
    """What holes are filled in, and with what by those who do not look.

    originals: unseen images (n, 3, S, S) in [-1, 1].  others: as many training images, other ones for each original.
    mean: the mean training image (3, S, S).
    """

    originals: Tensor
    others: Tensor
    mean: Tensor


def figure_n(runner: Runner, seeds: int) -> Findings:
    """Inpainting: what is made inside a mask, against the truth, against the same fillings put into other images."""
    usual = USUAL.guided(runner.scale.guidance)
    refuse_without_classes(runner, [usual])
    given, masks = _given(runner), _masks(runner.images.preprocessing.image_size)
    found = [_filled(runner, seed, given, masks) for seed in range(seeds)]
    values: Values = {}
    for name, hole in masks.items():
        for place, metrics_there in ((OURS, METRICS), (ELSEWHERE, METRICS[:2])):
            values[f"{name}: {place}"] = {
                metric: [one[name][place][metric] for one in found] for metric in metrics_there
            }
        for row, metrics in _blind(given, hole).items():
            values[f"{name}: {row}"] = {metric: [value] * seeds for metric, value in metrics.items()}
    comparisons = [comparison for name in masks for comparison in _figure_n_claims(values, name)]
    distances = [runner.quality("bernoulli", seed, replace(usual, seed=seed))["fd"] for seed in range(seeds)]
    untrained = [runner.untrained("bernoulli", replace(usual, seed=seed))["fd"] for seed in range(seeds)]
    table = Table(
        ["", "error ↓", "step across the edge of the hole ↓", "difference between fillings"],
        [[row, *(mean_and_spread(metrics.get(m, [])) for m in METRICS)] for row, metrics in values.items()],
    )
    return Findings(
        "Figure N: inpainting with different masks",
        "given part of an image, the prior fills the rest in diverse ways that fit what is given.",
        [
            (
                f"Mean ± standard deviation over {seeds} training seeds, each of {len(given.originals)} unseen images "
                f"filled {FILLINGS} times in {USUAL.steps} steps, τ = {USUAL.temperature}, told no class: squared "
                "error inside the hole, pixels in [-1, 1]; mean difference of neighbouring pixels on either side of "
                "its edge; standard deviation between fillings.",
                table,
            )
        ],
        [
            (
                f"figureN-{runner.scale.label}.png",
                "Three images a row, each whole, masked, and filled four times; one mask a row",
                _figure_n_picture(runner, given, masks),
            )
        ],
        comparisons=comparisons,
        basis=over(runner.scale, seeds) if seeds > 1 else "with one training, which decides nothing",
        gate=Gate({"bernoulli": distances}, untrained, moved_by_looking(values), runner.best()),
        values=values,
        notes=[
            "The paper shows pictures alone; what is compared is ours. A sampler that did not look at the given part "
            "would fill any hole as it fills this one: so its fillings are compared with themselves, put into the "
            "holes of the other images. What unrelated images and the mean training image would make stands beside; "
            "the mean has the least error of all that does not look, and no sampler is asked to beat it.",
        ],
    )


OURS, ELSEWHERE, OTHERS, TRUTH = "ours", "ours, put into other images", "other images' content", "the truth"
METRICS = ("error", "seam", "diversity")
DIVERSE = 0.25  # of the difference between unrelated images, at least


def moved_by_looking(values: Values) -> dict[str, list[list[float]]]:
    """Errors of fillings in the image that they were made for and in others, by mask: alike if nothing looks."""
    masks = [label.removesuffix(f": {OURS}") for label in values if label.endswith(f": {OURS}")]
    return {f"error, {name}": [values[f"{name}: {row}"]["error"] for row in (OURS, ELSEWHERE)] for name in masks}


def _figure_n_claims(values: Values, mask: str) -> list[Comparison]:
    ours, elsewhere, others = (values[f"{mask}: {row}"] for row in (OURS, ELSEWHERE, OTHERS))
    least = [DIVERSE * x for x in others["diversity"]]
    return [
        Comparison(
            f"{mask}: nearer to the truth than the same fillings in other images",
            ours["error"], elsewhere["error"], True,
        ),
        Comparison(
            f"{mask}: joins the given part better than the same fillings join other images",
            ours["seam"], elsewhere["seam"], True,
        ),
        Comparison(f"{mask}: fillings differ by a quarter of what images do, or more", least, ours["diversity"], True),
    ]  # fmt: skip


def _given(runner: Runner) -> Given:
    unseen, train = runner.unseen(0), runner.split(0)[0]
    count = min(GIVEN, len(unseen))
    originals = unseen.centre(torch.linspace(0, len(unseen) - 1, count).long())
    rows = keyed_permutation(0, "figure-n", 0, len(train))[: min(len(train), max(count * FILLINGS, 512))].copy()
    others = train.centre(torch.from_numpy(rows))
    chosen = torch.arange(count * FILLINGS) % len(others)
    return Given(originals, others[chosen].unflatten(0, (count, FILLINGS)), others.mean(0))


def _filled(
    runner: Runner, seed: int, given: Given, masks: dict[str, Tensor]
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of a training's fillings, where they belong and put into other images, by mask."""
    drawn = {
        "originals": len(given.originals),
        "fillings": FILLINGS,
        "sampling": asdict(USUAL),
        "drawn_from": seed * GIVEN,
        "against": ELSEWHERE,
    }
    key = runner.key("bernoulli", seed, **drawn)

    def compute() -> dict[str, dict[str, dict[str, float]]]:
        runner.say(f"Filling holes with bernoulli, seed {seed}.")
        pipeline, found = runner.pipeline("bernoulli", seed), {}
        for name, hole in masks.items():
            filled = torch.stack(
                [_fillings(pipeline, image, hole, seed * GIVEN + i) for i, image in enumerate(given.originals)]
            )
            found[name] = {
                OURS: _metrics(filled, given.originals, hole),
                ELSEWHERE: elsewhere(filled, given.originals, hole),
            }
        return found

    return runner.kept("fillings", key, compute)


def elsewhere(filled: Tensor, originals: Tensor, hole: Tensor) -> dict[str, float]:
    """Error and seam of fillings (n, k, 3, S, S) that are put into each of the other originals in turn.

    Both are what they are where the fillings belong if these do not depend on the given part, but for chance.
    """
    found = []
    for shift in range(1, len(originals)):
        pasted = torch.where(hole, filled.roll(shift, 0), originals[:, None])
        found.append(_metrics(pasted, originals, hole, alone=True))
    return {metric: fmean(one[metric] for one in found) for metric in METRICS[:2]}


def _fillings(pipeline: Any, image: Tensor, hole: Tensor, seed: int) -> Tensor:
    """(FILLINGS, 3, S, S) in [-1, 1]: the given pixels, and what is made of the hole."""
    out = pipeline.inpaint((image + 1) / 2, hole, FILLINGS, None, USUAL.steps, USUAL.temperature, 1.0, seed, "pt")
    return torch.where(hole, out.images * 2 - 1, image)


def _blind(given: Given, hole: Tensor) -> dict[str, dict[str, float]]:
    """Metrics of fillings that ignore the image, and of the truth."""
    truth = given.originals[:, None]
    pasted = torch.where(hole, given.others, truth)
    mean = torch.where(hole, given.mean, truth)
    return {
        OTHERS: _metrics(pasted, given.originals, hole),
        "the mean image": _metrics(mean, given.originals, hole, alone=True),
        TRUTH: _metrics(truth, given.originals, hole, alone=True),
    }


def _metrics(filled: Tensor, originals: Tensor, hole: Tensor, alone: bool = False) -> dict[str, float]:
    """Of fillings (n, k, 3, S, S): error, seam, and unless there is but one of each image, diversity."""
    difference = (filled - originals[:, None])[..., hole]
    found = {"error": float(difference.square().mean()), "seam": seam(filled, hole)}
    return found if alone else {**found, "diversity": float(filled[..., hole].std(1).mean())}


def seam(images: Tensor, hole: Tensor) -> float:
    """Mean absolute difference of two neighbouring pixels of which one lies in the hole (S, S); images (…, S, S)."""
    down, right = hole[1:] != hole[:-1], hole[:, 1:] != hole[:, :-1]
    steps = [(images[..., 1:, :] - images[..., :-1, :])[..., down], (images[..., 1:] - images[..., :-1])[..., right]]
    return float(torch.cat([step.flatten() for step in steps]).abs().mean())


def _figure_n_picture(runner: Runner, given: Given, masks: dict[str, Tensor]) -> Image.Image:
    pipeline, shown = runner.pipeline("bernoulli", 0), []
    for hole in masks.values():
        for i, image in enumerate(given.originals[:3]):
            masked = image.clone()
            masked[:, hole] = 0.0
            shown += [image, masked, *_fillings(pipeline, image, hole, i)]
    return make_grid(torch.stack(shown), columns=3 * (2 + FILLINGS), scale=runner.scale.enlarged)


# -- Figure O ---------------------------------------------------------------------------------------------


SAMPLES_O, COPIES = 500, 0.05  # samples that are looked at; of which fewer may be copies
FIGURE_O_GATE = (
    "Of copies an exact binomial test asks whether they are fewer than 5%. Before any of that, noise being far from "
    f"every image, the prior's samples, drawn with {SAMPLING_SEEDS} seeds, must have come two thirds of the way from "
    "an untrained network's distance to that of as many real images rebuilt from their codes, and differ from the "
    "untrained one's (analysis of variance, p < 0.05); else there is *too little training to say*, or nothing "
    "to decide."
)


def figure_o(runner: Runner, seeds: int) -> Findings:
    """Ten nearest training images of samples, and whether samples are nearer to them than unseen images are.

    Noise lies far from all of them: so nothing is judged before samples have come near the data.
    """
    train, usual = runner.split(0)[0], Sampling(64).guided(runner.scale.guidance)
    refuse_without_classes(runner, [usual])
    images = samples_of(runner, "bernoulli", 0, usual, min(SAMPLES_O, runner.scale.samples))
    neighbours, unseen = neighbours_of(images, train), unseen_nearness(runner, "bernoulli", 0)
    runner.machines.add(machine())  # as nothing of it is kept
    drawn = [replace(usual, seed=seed) for seed in range(SAMPLING_SEEDS)]
    distances = [runner.quality("bernoulli", 0, sampling)["fd"] for sampling in drawn]
    untrained = [runner.untrained("bernoulli", sampling)["fd"] for sampling in drawn]
    shown = [part for i in range(6) for part in (images[i : i + 1], neighbours.images(train, i))]
    grid = make_grid(torch.cat(shown), columns=11, scale=runner.scale.enlarged)
    ours = Nearness.of(neighbours)
    near = {"samples": ours, "unseen images": unseen.plain, "unseen images, rebuilt from their codes": unseen.rebuilt}
    copies = {label: unseen.copies(one) for label, one in near.items()}
    return Findings(
        "Figure O: nearest training images",
        "samples are new: the model does not repeat its training images.",
        [
            (
                f"Root mean squared difference of pixels in [0, 1]; {len(images)} samples, {len(train):,} training "
                "images. Copies lie nearer to one training image, for their distance to the tenth nearest, than all "
                f"but {100 * UNSEEN_COPIES:.0f}% of unseen images rebuilt from their codes.",
                _nearness_table(near, copies),
            )
        ],
        [
            (
                f"figureO-{runner.scale.label}.png",
                "Samples on the left, their ten nearest training images in the row",
                grid,
            )
        ],
        basis=f"over {len(images)} samples of one training",
        gate=Gate({"bernoulli": distances}, untrained, {"fd": [distances, untrained]}, runner.best(), paired=False),
        gate_rule=FIGURE_O_GATE,
        comparisons=[
            Share.below(
                f"fewer than {100 * COPIES:.0f}% of samples are copies", copies["samples"], len(images), COPIES
            ),
            Comparison(
                "samples are no nearer to training images than 0.8 times what unseen images, rebuilt, are",
                [0.8 * x for x in unseen.rebuilt.distances],
                ours.distances,
            ),
        ],
        values={label: asdict(one) for label, one in near.items()},
        notes=[
            "The paper compares by LPIPS, this page by pixels. A blurred or pale sample is near to many images and a "
            "copy to one: so what counts as a copy is near to one beside its ten nearest. Unseen images are compared "
            "as they are, and rebuilt, which carries the tokenizer's loss. The comparison is over images, not seeds.",
        ],
    )


def _nearness_table(near: dict[str, Nearness], copies: dict[str, int]) -> Table:
    rows = [
        [
            label, f"{median(one.distances):.4f}", f"{min(one.distances):.4f}", f"{median(one.alone):.3f}",
            f"{copies[label]:,} of {len(one.alone):,}",
        ]
        for label, one in near.items()
    ]  # fmt: skip
    headings = [
        "",
        "median distance to the nearest training image",
        "lowest",
        "over that to the tenth nearest",
        "copies",
    ]
    return Table(headings, rows)
