"""Work runs in a thread of its own, is shown step by step, and stops when nobody waits for it."""

from __future__ import annotations

import threading
import time

import pytest

from bld.errors import SettingError
from bld.studio.jobs import Progress, Report, Stopped, Stops, watched
from bld.studio.made import Made
from bld.studio.model import Model
from bld.studio.tabs.generate import generate
from bld.studio.tasks import Sampling


def test_the_result_comes_last_and_progress_before_it(model: Model):
    items = list(watched(model, lambda report: generate(model, Sampling(steps=24), 2, report)))
    assert isinstance(items[-1], Made) and len(items) > 5
    assert all(isinstance(item, Progress) for item in items[:-1])
    assert [item.step for item in items[:-1]] == sorted({item.step for item in items[:-1]})


def test_closing_stops_the_work_at_its_next_step_and_frees_the_model(model: Model):
    steps: list[int] = []
    ended = threading.Event()

    def work(report: Report) -> None:
        try:
            for step in range(10_000):
                steps.append(step)
                report(Progress(step, 10_000, pictures=()))
                time.sleep(0.001)
        except Stopped:
            ended.set()
            raise

    running = watched(model, work)
    next(running)
    running.close()
    assert ended.wait(60) and len(steps) < 10_000
    taken = len(steps)
    assert isinstance(list(watched(model, lambda report: generate(model, Sampling(steps=1), 1, report)))[-1], Made)
    assert len(steps) == taken


def test_closing_does_not_wait_for_the_step_that_is_under_way(model: Model):
    ended = threading.Event()

    def work(report: Report) -> None:
        report(Progress(1, 2, pictures=()))
        time.sleep(2)
        try:
            report(Progress(2, 2, pictures=()))
        finally:
            ended.set()

    running = watched(model, work)
    next(running)
    began = time.monotonic()
    running.close()  # as Gradio does in the thread that serves everybody
    assert time.monotonic() - began < 0.5 and not ended.is_set()
    assert ended.wait(10)


def test_an_error_of_the_work_is_raised_where_it_is_watched(model: Model):
    with pytest.raises(SettingError, match="steps"):
        list(watched(model, lambda report: generate(model, Sampling(steps=1000), 1, report)))


def test_one_piece_of_work_waits_for_the_other(model: Model):
    running, most = 0, 0

    def work(report: Report) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return most

    threads = [threading.Thread(target=lambda: list(watched(model, work))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_work_stops_when_asked_and_takes_no_step_when_asked_before(model: Model):
    stops, steps = Stops(), []

    def work(report: Report) -> None:
        for step in range(1, 100):
            steps.append(step)
            if step == 5:
                stops.ask("visitor", click=10)
            report(Progress(step, 100, pictures=()))

    with pytest.raises(Stopped):
        list(watched(model, work, lambda: stops.asked("visitor", 9)))
    assert steps == [1, 2, 3, 4, 5]
    with pytest.raises(Stopped):
        list(watched(model, work, lambda: stops.asked("visitor", 10)))
    assert len(steps) == 5


def test_a_stop_concerns_the_clicks_before_it_and_nobody_else():
    stops = Stops(most=2)
    stops.ask("a", 5)
    stops.ask("a", 3)  # came late
    assert stops.asked("a", 4) and not stops.asked("a", 6) and not stops.asked("b", 4)
    stops.ask("b", 1)
    stops.ask("c", 1)
    assert not stops.asked("a", 4)  # forgotten: only so many are remembered
