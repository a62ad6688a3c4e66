"""Classes in a printed command are the classes that were meant."""

from __future__ import annotations

import itertools
import shlex
from argparse import Namespace
from types import SimpleNamespace

import pytest

from bld.cli.common import labels_from
from bld.pipeline import class_words
from bld.pipeline.conditioning import Conditioning

HARD = ["a", "b", "a,b", "all", "none", "", "2", "01", "it's; $(ls) `x`", "zwei Wörter", "-x", "b,", ",", "\u2028"]


def read(words: str, known: list[str]) -> list[int]:
    """What `bld sample --classes WORDS` asks for, one image a class."""
    index = SimpleNamespace(classes=known)
    prior = SimpleNamespace(config=SimpleNamespace(num_classes=len(known)))
    pipe = SimpleNamespace(prior=prior, classes=known)
    count = len(known) if words == "all" else max(1, words.count(",") + 1)
    asked = labels_from(Namespace(classes=shlex.split(shlex.quote(words))[0]), pipe, count)
    if asked is None:
        return []
    conditioning = Conditioning(prior, index, lambda: None)
    return [conditioning.class_index(label) for label in asked]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_choice_of_hard_names_is_read_back_or_not_said(size):
    said = unsaid = 0
    for known in itertools.permutations(HARD, size):
        for count in range(1, size + 1):
            for labels in itertools.permutations(range(size), count):
                words = class_words(labels, list(known))
                if words is None:
                    unsaid += 1
                    continue
                said += 1
                read_back = read(words, list(known))
                assert read_back[: len(labels)] == list(labels), (known, labels, words)
                assert read_back == [labels[i % len(labels)] for i in range(len(read_back))]
    assert said > 20 * unsaid  # what cannot be said is rare


def test_no_class_and_every_class():
    assert class_words(None, ["a", "b"]) == "none" and class_words(None, ["none"]) is None
    assert class_words([0, 1], ["a", "b"]) == "all" and class_words([1, 0], ["a", "b"]) == "b,a"
    assert class_words([0, 1], ["a", "all"]) == "a,all"
