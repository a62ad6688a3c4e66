"""`bld bench` finds a checkout's benchmarks and runs each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bld.cli import bench, main


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two small benchmarks, one of which fails."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "measuring.py").write_text('"""Shared."""\n')
    (folder / "good.py").write_text(
        '"""Is it good?\n"""\nfrom pathlib import Path\nPath("good.txt").write_text("yes")\n'
    )
    (folder / "bad.py").write_text('"""Is it bad?"""\nraise SystemExit(3)\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_lists_what_each_asks(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    for name in bench.SPEED:
        assert any(line.startswith(f"{name} ") and line.endswith((".", "?")) for line in out.splitlines()), name
    assert "measuring" not in out


def test_it_runs_what_is_named_and_goes_on_after_a_failure(checkout: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "bad", "good"]) == 2
    assert (checkout / "good.txt").read_text() == "yes"
    caught = capsys.readouterr()
    assert "bad" in caught.err and "good" not in caught.err and "== good: done" in caught.out


def test_an_unknown_one_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "forwad"]) == 2
    assert "'forward'?" in capsys.readouterr().err


def test_away_from_a_checkout_it_says_where_they_are(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a/b/c/bench.py"))
    assert main(["bench"]) == 2
    assert "checkout" in capsys.readouterr().err
