"""Sharing to and loading from a hub: a real server on this machine, spoken to by the hub's own library."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from bld import BinaryLatentDiffusionPipeline
from bld.cli import main
from bld.errors import CheckpointError, SettingError
from bld.pipeline.sharing import ShareablePipeline
from bld.training.run_folder import RunFolder
from stub_hub import TOKEN, StubHub

FILES = {
    "README.md",
    "samples.png",
    "steps.png",
    "model_index.json",
    "diffusion/config.json",
    *(f"{part}/{file}" for part in ("tokenizer", "prior") for file in ("config.json", "model.safetensors")),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one's own; the library reads these settings when it is imported, which may have been before."""
    server = StubHub()
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def pipe(trained_run):
    return BinaryLatentDiffusionPipeline.from_pretrained(trained_run)


def images(pipe: BinaryLatentDiffusionPipeline) -> torch.Tensor:
    return pipe(4, class_labels=[0, 3, 5, 9], generator=0, num_inference_steps=8, output_type="pt").images


def test_what_is_shared_and_loaded_again_makes_the_same_images_bit_for_bit(hub, pipe):
    address = pipe.push_to_hub("me/digits", commit_message="First", license="cc-by-4.0")
    files = hub.repositories["me/digits"]["main"]
    assert address.startswith(f"{hub.url}/me/digits/commit/") and hub.messages == ["First"]
    assert set(files) == FILES
    again = BinaryLatentDiffusionPipeline.from_pretrained("me/digits")
    assert again.index == pipe.index and again.fingerprint() == pipe.fingerprint()
    assert torch.equal(images(again), images(pipe))
    assert all(path.endswith((".json", ".safetensors")) for path in hub.downloaded)


def test_weights_of_another_dtype_come_back_in_it_or_in_the_one_asked_for(hub, trained_run):
    half = BinaryLatentDiffusionPipeline.from_pretrained(trained_run, torch_dtype=torch.bfloat16)
    half.push_to_hub("me/half")
    again = BinaryLatentDiffusionPipeline.from_pretrained("me/half")
    assert again.prior.head.weight.dtype == torch.bfloat16 and torch.equal(images(again), images(half))
    wide = BinaryLatentDiffusionPipeline.from_pretrained("me/half", torch_dtype=torch.float32)
    assert wide.prior.head.weight.dtype == torch.float32


def test_a_revision_is_a_branch_of_its_own_and_a_proposal_touches_none(hub, pipe, trained_run):
    pipe.push_to_hub("me/digits")
    before = hub.repositories["me/digits"]["main"]
    other = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    with torch.no_grad():
        other.prior.head.bias += 1
    for _ in range(2):  # the branch may be there already
        other.push_to_hub("me/digits", revision="brighter")
    address = other.push_to_hub("me/digits", create_pr=True)
    assert address.endswith("/discussions/1") and hub.repositories["me/digits"]["main"] == before
    assert BinaryLatentDiffusionPipeline.from_pretrained("me/digits").fingerprint() == pipe.fingerprint()
    loaded = BinaryLatentDiffusionPipeline.from_pretrained("me/digits", revision="brighter")
    assert loaded.fingerprint() == other.fingerprint()
    assert "bld sample" not in hub.repositories["me/digits"]["brighter"]["README.md"].decode()  # it takes no revision
    with pytest.raises(CheckpointError, match=r"me/digits.* at nowhere .*: .*\bname\b"):
        BinaryLatentDiffusionPipeline.from_pretrained("me/digits", revision="nowhere")


@pytest.mark.parametrize("options", [[], ["--revision", "brighter"], ["--create-pr"]])
def test_the_line_that_is_printed_and_the_page_load_what_was_shared(options, hub, pipe, trained_run, tmp_path, capsys):
    pipe.push_to_hub("me/digits")
    other = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    with torch.no_grad():
        other.prior.head.bias += 1
    other.save_pretrained(tmp_path / "other")
    assert main(["share", str(tmp_path / "other"), "me/digits", *options]) == 0
    expression = r"BinaryLatentDiffusionPipeline\.from_pretrained\(.*?\)"
    printed = re.search(expression, capsys.readouterr().out)[0]
    assert eval(printed).fingerprint() == other.fingerprint()
    branch = "refs/pr/1" if "--create-pr" in options else "brighter" if options else "main"
    page = hub.repositories["me/digits"][branch]["README.md"].decode()
    on_page = re.search(expression, page)[0]
    assert on_page == (
        'BinaryLatentDiffusionPipeline.from_pretrained("me/digits")' if branch != "brighter" else printed
    )


def test_a_private_model_opens_with_its_token_only(hub, pipe, monkeypatch):
    pipe.push_to_hub("me/secret", private=True)
    assert hub.private == {"me/secret"}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match=r"me/secret.*\btoken\b"):
        BinaryLatentDiffusionPipeline.from_pretrained("me/secret")
    with pytest.raises(CheckpointError, match=r"me/other \([^)]*\btoken\b.*\)"):
        pipe.push_to_hub("me/other")
    assert BinaryLatentDiffusionPipeline.from_pretrained("me/secret", token=TOKEN).image_size == 8


def test_an_organisation_that_makes_private_repositories_is_not_overruled(hub, pipe):
    hub.private_by_default = True
    pipe.push_to_hub("house/digits")
    assert hub.private == {"house/digits"}


def test_what_is_to_be_private_goes_into_no_public_repository(hub, pipe):
    pipe.push_to_hub("me/digits", commit_message="First")
    before = dict(hub.repositories["me/digits"])
    for options in ({}, {"revision": "other"}, {"create_pr": True}):
        with pytest.raises(CheckpointError, match=r"me/digits .*\bpublic\b.* another name"):
            pipe.push_to_hub("me/digits", private=True, **options)
    assert hub.repositories["me/digits"] == before and hub.messages == ["First"]
    for _ in range(2):
        pipe.push_to_hub("me/secret", private=True)
    assert len(hub.messages) == 3


def test_what_the_hub_would_not_take_is_refused_before_anything_is_sampled(hub, pipe, monkeypatch):
    pipe.push_to_hub("me/digits")
    monkeypatch.setattr(ShareablePipeline, "save_card", lambda *_: pytest.fail("It sampled."))
    with pytest.raises(SettingError, match=r"you/flowers.*'digits'"):
        pipe.push_to_hub("digits")
    for licence in ("mitt", "a: b"):
        with pytest.raises(SettingError, match=rf"'{licence}'.* cc-by-4\.0"):
            pipe.push_to_hub("me/new", license=licence)
    assert "me/new" not in hub.repositories
    with pytest.raises(CheckpointError, match=r"me/digits .*\bpublic\b"):
        pipe.push_to_hub("me/digits", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match=r"me/other \([^)]*\btoken\b.*\)"):
        pipe.push_to_hub("me/other")


def test_an_unreachable_hub_is_one_sentence_and_a_copy_once_loaded_serves_without_it(hub, pipe, monkeypatch):
    pipe.push_to_hub("me/digits")
    BinaryLatentDiffusionPipeline.from_pretrained("me/digits")
    hub.shutdown()
    hub.server_close()
    assert BinaryLatentDiffusionPipeline.from_pretrained("me/digits").fingerprint() == pipe.fingerprint()
    with pytest.raises(CheckpointError, match=r"me/never-seen.* connection"):
        BinaryLatentDiffusionPipeline.from_pretrained("me/never-seen")
    with pytest.raises(CheckpointError, match=r"me/digits .* connection"):
        pipe.push_to_hub("me/digits")
    with pytest.raises(SettingError, match=r"you/flowers.*'digits'"):
        pipe.push_to_hub("digits")


def test_the_page_says_what_is_known_and_shows_what_the_model_makes(hub, run_copy):
    run, pipe = RunFolder(run_copy), BinaryLatentDiffusionPipeline.from_pretrained(run_copy)
    record = {"figures": {"fd": 12.345678}, "counts": {"fd": {"samples": 1000}}, "request": {"num": 7}}
    record["samples"] = {"temperature": 0.9, **of(pipe)}
    (run_copy / "evaluation.json").write_text(json.dumps({**record, "extractor": {"name": "somewhere/judge.pt"}}))
    pipe.push_to_hub("me/digits", license="cc-by-4.0")
    files = hub.repositories["me/digits"]["main"]
    text = files["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "bld"
    assert front["pipeline_tag"] == "unconditional-image-generation" and "class-conditional" in front["tags"]
    assert 'from_pretrained("me/digits")' in text and 'class_labels="0"' in text
    decibels = [line["held_out_psnr"] for line in run.read_metrics() if "held_out_psnr" in line][-1]
    assert f"| {decibels:.2f} dB |" in text and "| fd | 12.346 | 1,000 samples, features: judge.pt" in text
    assert "6 steps of 32" in text and "4×4×32, 64 bytes" in text and str(run_copy) not in text
    for heading in ("How to use", "How good it is", "Limits and biases", "Licence"):
        assert f"## {heading}" in text
    assert Image.open(io.BytesIO(files["samples.png"])).size == (10 * 96 + 9 * 2, 4 * 96 + 3 * 2)


def test_every_row_of_the_page_has_as_many_cells_as_its_table(pipe, tmp_path):
    pipe.save_card(tmp_path, "me/digits")
    tables = re.findall(r"(?:^\|.*\n)+", (tmp_path / "README.md").read_text(), re.MULTILINE)
    assert len(tables) == 2 and "H(z" in tables[1]
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def of(pipe: BinaryLatentDiffusionPipeline) -> dict[str, str]:
    """What an evaluation records of a model."""
    return {"model": pipe.fingerprint(), "process": repr(pipe.diffusion.settings())}


def told(pipe: BinaryLatentDiffusionPipeline, folder: Path) -> bool:
    """Whether the model's page tells the distance of its folder's evaluation."""
    pipe.save_card(folder, "me/digits")
    return "| fd | 12.346 |" in (folder / "README.md").read_text()


def test_figures_are_told_of_the_weights_they_were_measured_on_and_of_no_others(run_copy, tmp_path):
    def load(folder: Path, **options) -> BinaryLatentDiffusionPipeline:
        return BinaryLatentDiffusionPipeline.from_pretrained(folder, **options)

    def write(folder: Path, **samples) -> None:
        (folder / "evaluation.json").write_text(json.dumps({"figures": {"fd": 12.345678}, "samples": samples}))

    pipe, page = load(run_copy), tmp_path / "page"
    write(run_copy, **of(pipe))
    assert told(pipe, page) and told(load(run_copy).enable_tiling(1), page)  # after sampling too
    assert not told(load(run_copy).with_posterior("plugin"), page)  # the same weights sampled otherwise
    pipe.save_pretrained(tmp_path / "copy")
    shutil.copy(run_copy / "evaluation.json", tmp_path / "copy")
    assert told(load(tmp_path / "copy"), page)
    half = load(run_copy, torch_dtype=torch.bfloat16)
    assert not told(half, page)
    half.save_pretrained(tmp_path / "half")
    write(tmp_path / "half", **of(half))
    assert told(load(tmp_path / "half"), page)
    write(run_copy, images=12)  # those of another program have no model
    assert not told(load(run_copy), page)
    write(run_copy, **of(pipe))
    with torch.no_grad():
        pipe.prior.head.bias += 1
    assert not told(pipe, page)
    pipe.save_pretrained(run_copy)  # as a training that goes on does
    assert not told(load(run_copy), page)


def test_a_model_without_a_run_or_a_licence_claims_nothing(hub, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "saved").save_card(tmp_path / "saved", "me/digits")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "Nothing was measured" in text and "No licence was chosen" in text and "license: other" in text


def test_the_verb_shares_a_run_that_another_process_loads_by_name(hub, trained_run, tmp_path, capsys):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    words = ["share", str(trained_run), "me/digits", "--private", "--license", "mit", "--message", "Mine"]
    result = subprocess.run(
        [sys.executable, "-m", "bld", *words], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert f"Shared: {hub.url}/me/digits/commit/" in result.stdout and hub.messages == ["Mine"]
    assert main(["sample", "me/digits", "--num", "2", "--steps", "2", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "000001.png").is_file()
    assert main(["share", str(trained_run), "me/digits", "--dry-run", str(tmp_path / "dry")]) == 0
    found = {str(path.relative_to(tmp_path / "dry")) for path in Path(tmp_path / "dry").rglob("*") if path.is_file()}
    assert found == FILES
    assert main(["share", str(tmp_path / "nothing"), "me/digits"]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main(["share", str(trained_run), "digits", "--dry-run", str(tmp_path / "unnamed")]) == 2
    assert "such as you/flowers" in capsys.readouterr().err and not (tmp_path / "unnamed").exists()


def test_a_commit_without_a_message_says_what_it_is(hub, pipe):
    pipe.push_to_hub("me/digits", commit_message=" ")
    assert hub.messages == ["Share a binary latent diffusion model"]


def test_judging_a_model_of_the_hub_makes_no_folder_that_stands_in_its_way(hub, pipe, tmp_path, monkeypatch):
    pipe.push_to_hub("me/digits")
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "me/digits", "--data", "digits", "--metrics", "psnr", "--features", "none"]
    for _ in range(2):
        assert main(words) == 0
    assert not (tmp_path / "me").exists() and (tmp_path / "evaluation" / "digits" / "evaluation.json").is_file()


def test_a_run_begins_with_a_tokenizer_of_the_hub(hub, pipe, tmp_path):
    pipe.push_to_hub("me/digits")
    words = ["prior.dim=32", "prior.depth=1", "prior.heads=2", "prior_training.steps=2", "prior_training.batch_size=32"]
    out = str(tmp_path / "run")
    command = ["train-prior", "--data", "digits", "--preset", "digits", "--out", out, "--tokenizer", "me/digits"]
    assert main([*command, *words]) == 0
    assert RunFolder(tmp_path / "run").progress()["tokenizer"]["given"] == "me/digits"
    hub.shutdown()
    hub.server_close()
    assert main([*command, *words]) == 0
