"""What a time budget buys on this machine: sizes, steps, and that nobody's own choice is overruled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bld.cli import build_parser, main
from bld.cli.common import recipe_from
from bld.errors import SettingError
from bld.planning import budget
from bld.planning.budget import CHANNELS, PRIORS, Pace, asked_flops, measure, plan, training_flops, wanted_steps
from bld.planning.simulate import prior_step, tokenizer_step
from bld.training import time_budget
from bld.training.config import load_settings
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings
from bld.training.time_budget import STAGES, split

LAPTOP = Pace(90e9, 60e9)


@pytest.mark.parametrize("minutes", [1, 5, 30, 480])
@pytest.mark.parametrize("speed", [0.3, 1, 20, 3000])
def test_the_largest_sizes_are_taken_that_still_make_enough_steps(minutes: float, speed: float):
    settings = load_settings("cifar10")
    pace = Pace(*(speed * rate for rate in LAPTOP))
    bought = plan(settings, 60 * minutes, pace)
    sizes = {"tokenizer": [{"tokenizer.base_channels": n} for n in CHANNELS],
             "prior": [{"prior.dim": d, "prior.depth": n, "prior.heads": d // 32} for d, n in PRIORS]}  # fmt: skip
    for stage in STAGES:
        most = getattr(settings, f"{stage}_training").steps
        other = {key: value for key, value in bought.sizes.items() if not key.startswith(stage)}
        usual = getattr(settings, f"{stage}_training").batch_size
        smaller = usual // bought.sizes.get(
            f"{stage}_training.batch_size", usual
        )  # batches, of as many images together
        steps = [
            split(60 * minutes, STAGES, settings.tokenizer_share)[stage] * getattr(pace, stage)
            / training_flops(budget.with_sizes(settings, {**other, **size}), stage)
            for size in sizes[stage]
        ]  # fmt: skip
        wanted = [wanted_steps(budget.with_sizes(settings, {**other, **size}), stage) for size in sizes[stage]]
        enough = [i for i, (n, least) in enumerate(zip(steps, wanted, strict=True)) if n >= min(least, most)]
        expected = max(enough, default=0)
        assert sizes[stage][expected].items() <= bought.sizes.items()
        assert bought.steps[stage] == min(smaller * int(steps[expected]), most)
        assert (smaller > 1) == (stage == "tokenizer" and not enough)
        assert smaller <= 2 or smaller * steps[expected] < 2 * wanted[expected]  # no smaller than need be


def test_where_even_the_smallest_tokenizer_sees_few_images_they_come_in_smaller_batches(monkeypatch, capsys):
    settings = load_settings("photos64")
    slow = plan(settings, 1800, LAPTOP)
    assert slow.sizes["tokenizer.base_channels"] == min(CHANNELS) and slow.sizes["tokenizer_training.batch_size"] == 16
    fast = plan(settings, 1800, Pace(10 * LAPTOP.tokenizer, LAPTOP.prior))
    assert "tokenizer_training.batch_size" not in fast.sizes
    given = plan(settings, 1800, LAPTOP, ["tokenizer_training.batch_size"])
    assert given.sizes == {key: size for key, size in slow.sizes.items() if not key.endswith("batch_size")}
    assert slow.steps["tokenizer"] == 2 * given.steps["tokenizer"]
    assert plan(settings, 60, LAPTOP).sizes["tokenizer_training.batch_size"] == 8  # the least
    assert "tokenizer_training.batch_size" not in plan(settings, 1800, LAPTOP, ["tokenizer.base_channels"]).sizes
    assert f"{slow.steps['tokenizer']:,} tokenizer steps of 16" in slow.sentence(settings)
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    assert main(["info", "photos64", "--budget", "30m"]) == 0
    assert f"about {slow.steps['tokenizer']:,} steps of 16" in capsys.readouterr().out


def test_who_limits_the_steps_loses_no_images_to_smaller_batches():
    """As many steps of half the batch would be half the images; the time is better spent on a larger network."""
    for most in (500, 1000, 1400, 5000):
        limited = load_settings("photos64", overrides=[f"tokenizer_training.steps={most}"])
        bought = plan(limited, 1800, LAPTOP)
        seen = bought.steps["tokenizer"] * bought.sizes.get("tokenizer_training.batch_size", 32)
        smallest = budget.with_sizes(limited, {"tokenizer.base_channels": min(CHANNELS)})
        in_time = bought.seconds["tokenizer"] * LAPTOP.tokenizer / training_flops(smallest, "tokenizer")
        assert seen >= 32 * min(int(in_time), most)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 16), (16, 1), (4, 2), (64, 1)])
def test_a_smaller_batch_still_has_images_for_every_process_and_piece(processes: int, accumulate: int):
    settings = load_settings("photos64", overrides=[f"tokenizer_training.accumulate={accumulate}"])
    bought = plan(settings, 30, LAPTOP, processes=processes)
    assert bought.sizes.get("tokenizer_training.batch_size", 32) >= min(32, max(8, processes * accumulate))


def test_processes_together_make_as_many_more_steps_and_are_measured_with_their_part_of_the_batch(monkeypatch):
    settings = load_settings("cifar10")
    alone, together = plan(settings, 600, LAPTOP), plan(settings, 150, LAPTOP, processes=4)
    assert together.sizes == alone.sizes
    assert together.steps["prior"] == pytest.approx(alone.steps["prior"], abs=1)
    batches = []
    monkeypatch.setattr(budget, "_seconds", lambda *_: 1.0)
    for stage in STAGES:
        monkeypatch.setattr(
            budget,
            f"{stage}_step",
            lambda settings, _, stage=stage: batches.append(getattr(settings, f"{stage}_training").batch_size),
        )
    twice = load_settings("cifar10", overrides=["prior_training.accumulate=2"])
    paces = measure(twice, processes=4)
    assert batches == [twice.tokenizer_training.batch_size // 4, twice.prior_training.batch_size // 8]
    assert paces.prior == pytest.approx(training_flops(twice, "prior") / 8)


def test_what_a_settings_file_of_the_user_says_is_chosen(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: photos64\ntokenizer_training: {batch_size: 64}\nprior: {dim: 160}\n")
    words = ["train", "--data", "digits", "--preset", str(mine), "--budget", "1m", "--out", str(tmp_path / "a")]
    with recipe_from(build_parser(only="train").parse_args(words)) as recipe:
        settings = recipe.settings
    assert settings.tokenizer_training.batch_size == 64 and settings.prior.dim == 160
    assert settings.tokenizer.base_channels == min(CHANNELS)  # of which it says nothing
    assert main(["info", str(mine), "--budget", "1m"]) == 0
    told = capsys.readouterr().out
    assert "with tokenizer.base_channels" in told
    assert "with prior.dim" not in told and "with tokenizer_training.batch_size" not in told


def test_a_larger_prior_is_to_see_more_images():
    settings = load_settings("cifar10", overrides=["prior.dim=256", "prior.depth=8"])
    deeper = load_settings("cifar10", overrides=["prior.dim=256", "prior.depth=16", "prior_training.batch_size=32"])
    images = [wanted_steps(one, "prior") * one.prior_training.batch_size for one in (settings, deeper)]
    assert images[0] == pytest.approx(0.018 * 6.4e6, rel=0.03) and images[1] == pytest.approx(2 * images[0], rel=0.05)


def test_a_longer_time_or_a_faster_machine_never_gets_smaller_networks():
    found = [plan(load_settings("emoji64"), seconds, LAPTOP).sizes for seconds in (60, 300, 1800, 7200, 28800)]
    assert [sizes["prior.dim"] for sizes in found] == sorted(sizes["prior.dim"] for sizes in found)
    assert found[0] != found[-1]


def test_sizes_that_someone_has_chosen_are_left_alone():
    settings = load_settings("cifar10", overrides=["prior.dim=384", "tokenizer.base_channels=40"])
    both = plan(settings, 1800, LAPTOP, ["prior.dim", "tokenizer.base_channels"])
    assert both.sizes == {} and both.steps["prior"] > 0
    assert set(plan(settings, 1800, LAPTOP, ["prior.dim"]).sizes) == {"tokenizer.base_channels"}
    assert plan(load_settings("churches256"), 1800, LAPTOP).sizes == {}  # the paper's
    assert plan(load_settings("cifar10", overrides=["sizes_by_budget=false"]), 1800, LAPTOP).sizes == {}


def test_the_time_is_shared_between_stages_and_what_comes_after_them():
    assert split(1000, STAGES, 0.4) == {"tokenizer": 400, "prior": 540}  # 60 are kept
    assert split(1000, STAGES, 0.25) == {"tokenizer": 250, "prior": 690}
    assert sum(split(1000, STAGES, 0.99).values()) == 940
    assert sum(split(100_000, STAGES, 0.4).values()) == 100_000 - time_budget.MOST_RESERVED_SECONDS
    assert split(1000, ["prior"], 0.4) == {"prior": 1000}


def test_the_preset_says_how_the_time_is_shared():
    shares = [
        plan(load_settings(preset), 1800, LAPTOP).seconds["tokenizer"] for preset in ("digits", "emoji64", "photos64")
    ]
    assert shares == [720, 450, 450]
    with pytest.raises(SettingError, match="tokenizer_share"):
        load_settings("digits", overrides=["tokenizer_share=1"])


@pytest.mark.parametrize("preset", ["digits", "cifar10", "emoji64"])
def test_the_arithmetic_agrees_with_the_operations_of_a_real_step(preset: str):
    settings = load_settings(preset)
    exact = {
        "tokenizer": tokenizer_step(settings, settings.tokenizer_training.batch_size, bf16=False).flops,
        "prior": prior_step(settings, settings.prior_training.batch_size, 0, bf16=False).flops,
    }
    for stage, flops in exact.items():
        assert training_flops(settings, stage) == pytest.approx(flops, rel=0.1)


@pytest.mark.parametrize(
    ("preset", "terms"),
    [
        ("photos64", ["objective.perceptual=1"]),
        ("emoji64", ["objective.adversarial=0.5"]),
        ("cifar10", ["objective.perceptual=1", "objective.adversarial=1", "objective.adversarial_weight=adaptive"]),
    ],
)
def test_lpips_and_the_discriminator_are_counted_as_a_real_step_has_them(preset: str, terms: list[str]):
    for width in ("tokenizer.base_channels=48", "tokenizer.base_channels=96"):
        settings = load_settings(preset, overrides=[*terms, width])
        exact = tokenizer_step(settings, settings.tokenizer_training.batch_size, bf16=False).flops
        assert asked_flops(settings, "tokenizer") == pytest.approx(exact, rel=0.1)
        assert asked_flops(settings, "tokenizer") > 1.3 * training_flops(settings, "tokenizer")
        assert asked_flops(settings, "prior") == training_flops(settings, "prior")


def test_a_plan_counts_lpips_and_from_its_start_the_discriminator():
    words = ["tokenizer.base_channels=64", "objective.perceptual=1", "objective.adversarial=0.5"]

    def steps(*more: str) -> int:
        settings = load_settings("cifar10", overrides=[*words, *more])
        return plan(settings, 1800, LAPTOP, ["tokenizer.base_channels"]).steps["tokenizer"]

    plain, lpips = steps("objective.perceptual=0", "objective.adversarial=0"), steps("objective.adversarial=0")
    both, half = steps(), steps("objective.adversarial_start=0.5")
    assert both < half < lpips < 0.6 * plain
    assert half == pytest.approx((both + lpips) / 2, abs=2)  # half of the time at each rate
    sized = [
        plan(load_settings("photos64", overrides=o), 36000, LAPTOP).sizes for o in ([], ["objective.perceptual=1"])
    ]
    assert sized[0]["tokenizer.base_channels"] > sized[1]["tokenizer.base_channels"]


def test_measuring_changes_no_random_draw_and_takes_some_seconds_at_most(tiny_overrides: list[str]):
    settings = load_settings("digits", overrides=tiny_overrides)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pace = measure(settings)
    assert torch.equal(torch.rand(3), expected)
    assert min(pace) > 1e6


def test_a_run_that_begins_with_a_budget_is_sized_once(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    words = ["train", "--data", "digits", "--preset", "cifar10", "--budget", "30m", "--out", str(tmp_path / "a")]
    expected = plan(load_settings("cifar10"), 1800, LAPTOP).sizes
    with recipe_from(build_parser(only="train").parse_args([*words, "seed=3"])) as recipe:
        settings = recipe.settings
    assert settings.prior.dim == expected["prior.dim"] and settings.prior.depth == expected["prior.depth"]
    assert settings.tokenizer.base_channels == expected["tokenizer.base_channels"] and settings.seed == 3
    assert f"prior.dim={settings.prior.dim}" in capsys.readouterr().out
    monkeypatch.setattr(budget, "measure", lambda *_: pytest.fail("sized again"))
    with recipe_from(build_parser(only="train").parse_args(words)) as recipe:  # the same time, and nothing begun
        assert recipe.settings.prior == settings.prior
    (tmp_path / "a" / "tokenizer").mkdir()
    (tmp_path / "a" / "prior").mkdir()
    words[words.index("30m")] = "8h"
    with recipe_from(build_parser(only="train").parse_args(words)) as recipe:  # goes on with what it is
        assert recipe.settings.prior == settings.prior
    assert f"{tmp_path / 'a'} goes on with the sizes" in capsys.readouterr().out  # of half an hour, for eight
    assert RunFolder(tmp_path / "a").settings().prior == settings.prior


def test_each_stage_is_sized_for_the_time_that_it_begins_with(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)

    def begun(command: str, *words: str) -> Settings:
        args = [command, "--out", str(tmp_path / "a"), *words]
        with recipe_from(build_parser(only=command).parse_args(args)) as recipe:
            return recipe.settings

    first = begun("train-tokenizer", "--data", "digits", "--preset", "cifar10", "--budget", "5m", "sampling.steps=8")
    assert first.prior.dim == load_settings("cifar10").prior.dim
    (tmp_path / "a" / "tokenizer").mkdir()
    for budgeted, seconds in (("1m", 60), ("8h", 28800)):  # of a prior that has not begun yet
        second = begun("train-prior", "--budget", budgeted)
        expected = plan(load_settings("cifar10"), seconds, LAPTOP, stages=["prior"]).sizes
        assert (second.prior.dim, second.prior.depth) == (expected["prior.dim"], expected["prior.depth"])
        assert second.tokenizer == first.tokenizer and second.sampling.steps == 8
        assert f"prior.dim={second.prior.dim}" in capsys.readouterr().out
    assert begun("encode") == second
    chosen = begun("train-prior", "--budget", "1m", "prior.dim=192")
    assert (chosen.prior.dim, chosen.prior.depth) == (192, second.prior.depth)
    assert begun("train-prior", "--budget", "2m").prior == chosen.prior  # which somebody has said


def test_sizes_that_were_said_before_there_was_a_budget_stay(tmp_path: Path, monkeypatch):
    """Also where they are the preset's own, and what a file or other weights bring."""
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    usual = load_settings("cifar10").prior
    (tmp_path / "mine.yaml").write_text(f"base: cifar10\nprior.depth: {usual.depth}\n")
    for name, words in {"a": ["cifar10", f"prior.dim={usual.dim}"], "b": [str(tmp_path / "mine.yaml")]}.items():
        out, preset = ["--out", str(tmp_path / name)], ["--data", "digits", "--preset", *words]
        for args in (["train-tokenizer", *out, *preset], ["train-prior", *out, "--budget", "1m"]):
            with recipe_from(build_parser(only=args[0]).parse_args(args)) as recipe:
                assert recipe.settings.prior == usual


def test_a_smaller_batch_of_a_short_time_is_given_up_for_a_longer_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    words = ["train", "--out", str(tmp_path / "a"), "--data", "digits", "--preset", "photos64", "--budget"]
    for time, batch in (("1m", 8), ("100h", 32), ("1m", 8)):
        with recipe_from(build_parser(only="train").parse_args([*words, time])) as recipe:
            assert recipe.settings.tokenizer_training.batch_size == batch


def test_info_of_a_run_keeps_the_sizes_that_the_run_has(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    RunFolder(tmp_path / "run").adopt("cifar10", ["prior.dim=128"], "digits")
    for what, sized in ((str(tmp_path / "run"), False), ("cifar10", True)):
        assert main(["info", what, "--budget", "8h", "--show-settings"]) == 0
        told = capsys.readouterr().out
        assert ("with prior.dim" in told) == sized and "sizes_by_budget: true" in told


def test_info_of_a_run_foretells_the_sizes_that_training_it_would_choose(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    out = tmp_path / "a"

    def told(*words: str) -> dict[str, str]:
        assert main(["info", str(out), *words]) == 0
        lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line]
        return {name: value.strip() for name, value in lines}

    words = ["train-tokenizer", "--data", "digits", "--preset", "cifar10", "--budget", "5m", "--out", str(out)]
    with recipe_from(build_parser(only="train-tokenizer").parse_args(words)) as recipe:
        channels = recipe.settings.tokenizer.base_channels
    (out / "tokenizer").mkdir()
    capsys.readouterr()
    foretold = told("--budget", "8h")
    assert "with tokenizer.base_channels" not in foretold  # which has begun
    RunFolder(out).record("tokenizer", given="somewhere")  # all of the time is the prior's
    alone = told("--budget", "1h")
    minutes = split(3600, ["prior"], 0.4)["prior"] / 60
    assert "tokenizer training reaches" not in alone and f"in {minutes:,.1f} minutes" in alone
    with recipe_from(build_parser(only="train-prior").parse_args(
        ["train-prior", "--out", str(out), "--budget", "1h"]
    )) as recipe:  # fmt: skip
        assert alone["with prior.dim"] == str(recipe.settings.prior.dim)
        assert recipe.settings.tokenizer.base_channels == channels
    (out / "prior").mkdir()
    assert not any(name.startswith("with ") for name in told("--budget", "8h"))


def test_info_foretells_what_a_budget_buys(monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", lambda *_: LAPTOP)
    assert main(["info", "cifar10", "--budget", "30m", "prior.dim=384"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    shown = {name: value.strip() for name, value in lines.items()}
    settings = load_settings("cifar10", overrides=["prior.dim=384"])
    bought = plan(settings, 1800, LAPTOP, ["prior.dim"])
    assert shown["tokenizer training reaches"] == "90 GFLOP/s"
    each = settings.prior_training.batch_size
    assert shown["in 20.7 minutes"] == f"about {bought.steps['prior']:,} steps of {each}"
    assert shown["with tokenizer.base_channels"] == str(bought.sizes["tokenizer.base_channels"])
    assert "with prior.dim" not in shown
    assert main(["info", "cifar10", "--budget", "soon"]) == 2
