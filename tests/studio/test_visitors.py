"""Many visitors at once: each gets their own pictures, and whoever is one too many a sentence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bld.studio.model import Model

from .conftest import QUEUE
from .visitor import Refused, Visitor, pictures_in

VISITORS = 30


def test_thirty_visitors_get_each_the_pictures_of_his_own_seed(studio: str, model: Model):
    def visit(seed: int) -> tuple[np.ndarray, list[str]]:
        visitor = Visitor(studio)
        html, succeeded, shown = visitor.ask("bld-run-generate", Seed=seed, Pictures=2, Steps=12, Class=seed % 10)
        assert succeeded, html
        return pictures_in(html), shown

    with ThreadPoolExecutor(VISITORS) as pool:
        answers = list(pool.map(visit, range(VISITORS)))
    for seed, (pictures, shown) in enumerate(answers):
        own = model.pipe(2, class_labels=seed % 10, num_inference_steps=12, generator=seed).images
        assert np.array_equal(pictures, np.stack([np.asarray(image) for image in own])), f"seed {seed}"
        assert any("Step" in html and "<img" in html for html in shown), "the steps were shown on the way"
    assert len({pictures.tobytes() for pictures, _ in answers}) == VISITORS


def test_more_than_can_wait_are_refused_in_a_sentence_and_the_others_are_served(studio: str):
    visitor = Visitor(studio)
    long = visitor.values("bld-run-generate", Pictures=64, Steps=64)
    short = visitor.values("bld-run-generate", Pictures=1, Steps=1)
    events, refusals = [visitor.join("bld-run-generate", long)], []
    for _ in range(QUEUE + 8):
        try:
            events.append(visitor.join("bld-run-generate", short))
        except Refused as refusal:
            refusals.append(refusal.args)
    assert refusals and {status for status, _ in refusals} == {429}
    assert all(f" {QUEUE} requests" in sentence for _, sentence in refusals)
    visitor.join("bld-stop-generate", [0])  # a stop does not wait in line
    html, succeeded, _ = visitor.answer(events[-1])
    assert succeeded and len(pictures_in(html)) == 1


def test_a_refused_setting_is_a_sentence_and_the_next_request_is_served(studio: str):
    visitor = Visitor(studio)
    sentence, succeeded, _ = visitor.ask("bld-run-generate", Seed=None)
    assert not succeeded and "seed" in sentence and sentence.endswith(".")
    sentence, succeeded, _ = visitor.ask("bld-run-generate", Steps=1000)
    assert not succeeded and "1000" in sentence
    sentence, succeeded, _ = visitor.ask("bld-run-generate", Pictures=None)
    assert not succeeded and sentence.startswith("Pictures is empty: ")
    _, succeeded, _ = visitor.ask("bld-run-generate", Pictures=1, Steps=1)
    assert succeeded
