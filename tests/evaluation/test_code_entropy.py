"""What a code's bits hold: coin flips, independent bits, and what is left for a prior to learn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bld import BinaryLatentDiffusionPipeline
from bld.cli import main
from bld.codes import bit_entropy, code_entropy, learned_sentence
from bld.data import ImageSet, Preprocessing
from bld.evaluation.evaluate import likelihood_metrics
from bld.evaluation.load_run import open_run
from bld.evaluation.record import lines
from bld.report.page import learned_of
from bld.training.held_out_codes import held_out_entropy
from bld.training.run_folder import RunFolder


def test_the_coin_flips_are_the_entropy_of_the_probabilities():
    p = torch.tensor([[[0.5, 0.0], [0.25, 1.0]], [[0.5, 1.0], [0.75, 0.0]]])  # 2 images, 2 positions, 2 bits
    found = code_entropy(p)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert found.images == 2 and found.bits == 4
    assert found.noise_bits == pytest.approx(1 + quarter)
    assert found.noise_of_bits == pytest.approx([(1 + quarter) / 2, 0])


def test_independent_bits_are_a_code_length_of_other_images():
    """Each image under the others' mean with half a bit added on either side, by enumeration."""
    p = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    lengths = []
    for i in range(5):
        q = (p[[j for j in range(5) if j != i]].sum(0) + 0.5) / 5
        lengths.append(float(-(p[i] * q.log2() + (1 - p[i]) * (1 - q).log2()).sum()))
    assert code_entropy(p).independent_bits == pytest.approx(np.mean(lengths))


def test_independent_bits_never_fall_below_the_coin_flips_and_reach_them_where_images_are_alike():
    p = torch.rand(1, 4, 8, generator=torch.Generator().manual_seed(1)).expand(4000, -1, -1)
    found = code_entropy(p)
    assert found.noise_bits <= found.independent_bits < found.noise_bits * 1.001
    assert found.noise_bits == pytest.approx(float(bit_entropy(p[0].double().numpy()).sum()))


def test_a_prior_that_knows_the_truth_reaches_the_floor():
    """Codes drawn of known probabilities cost H(z|x) under those, and less under none: mean of 20,000 draws, 5 σ."""
    p = torch.rand(1, 2, 4, generator=torch.Generator().manual_seed(2)).double()
    z = torch.bernoulli(p.expand(20_000, -1, -1), generator=torch.Generator().manual_seed(3))
    lengths = -(z * p.log2() + (1 - z) * (1 - p).log2()).sum((1, 2))
    standard_error = float(lengths.std()) / math.sqrt(len(lengths))
    assert abs(float(lengths.mean()) - code_entropy(p.expand(2, -1, -1)).noise_bits) < 5 * standard_error  # 6e-7


def test_the_sentence_counts_what_was_learned():
    sentence = learned_sentence(512, 255.0, 187.0, 300.0)
    assert all(number in sentence for number in ("512", "187", "300", "255", "113", "45"))


def test_a_run_records_its_noise_floor_and_the_report_and_card_tell_it(run_copy: Path):
    code = json.loads((run_copy / "progress.json").read_text())["code"]
    tokenizer = BinaryLatentDiffusionPipeline.from_pretrained(run_copy).tokenizer
    opened = open_run(RunFolder(run_copy), torch.device("cpu"))
    assert opened.held_out is not None
    again = held_out_entropy(tokenizer, opened.held_out, torch.arange(len(opened.held_out)))
    assert again is not None and code["images"] == again.images == 180
    assert code["noise_bits"] == pytest.approx(again.noise_bits, abs=0.01)
    assert code["independent_bits"] == pytest.approx(again.independent_bits, abs=0.01)
    assert len(code["noise_of_bits"]) == 32
    rate = opened.measured("prior")["held_out_drawn_bits_per_bit"]
    noise, could, has = learned_of(opened, rate * 512) or (0, 0, 0)
    assert could == pytest.approx(code["independent_bits"] - noise) and has <= could
    assert main(["share", str(run_copy), "me/it", "--dry-run", str(run_copy / "shared")]) == 0
    card = (run_copy / "shared" / "README.md").read_text()
    assert f"{code['noise_bits']:.1f} bits an image" in card and card.count("PSNR") == 2
    assert main(["report", str(run_copy)]) == 0
    assert f"{code['noise_bits']:,.0f}" in (run_copy / "report.html").read_text()


def test_evaluate_tells_the_floor_beside_the_prior_and_both_psnrs(run_copy: Path, capsys):
    pytest.importorskip("torchmetrics")
    out = run_copy / "e.json"
    words = ["evaluate", str(run_copy), "--metrics", "bits,psnr,ssim", "--steps", "2", "--out", str(out)]
    assert main(words) == 0
    metrics = json.loads(out.read_text())["figures"]
    code = json.loads((run_copy / "progress.json").read_text())["code"]
    assert metrics["noise_bits"] == pytest.approx(code["noise_bits"], rel=1e-3)
    assert metrics["noise_bits"] < metrics["bits_per_code"]
    assert metrics["noise_bits"] < metrics["independent_bits"]
    assert metrics["drawn_psnr"] < metrics["psnr"]
    said = capsys.readouterr().out
    assert learned_sentence(512, metrics["bits_per_code"], metrics["noise_bits"], metrics["independent_bits"]) in said


def test_of_a_single_image_there_is_no_error_and_nothing_that_could_be_learned(run_copy: Path):
    pipeline = BinaryLatentDiffusionPipeline.from_pretrained(run_copy)
    opened = open_run(RunFolder(run_copy), torch.device("cpu"))
    assert opened.held_out is not None
    one, two = (likelihood_metrics(pipeline, opened.held_out, count, 0, 10, draws=1) for count in (1, 2))
    assert two.keys() - one.keys() == {"bits_per_code_standard_error", "independent_bits"}
    assert two["bits_per_code_standard_error"] > 0
    assert not any("could be learned" in line for line in lines(one, None))
    assert any("could be learned" in line for line in lines(two, None))


def test_reconstruct_tells_both_psnrs(trained_run: Path, tmp_path: Path, capsys):
    assert main(["reconstruct", str(trained_run), "--data", "digits", "--num", "50", "--out", str(tmp_path / "o")]) == 0
    found = json.loads((tmp_path / "o" / "psnr.json").read_text())
    assert found["drawn_psnr_mean"] < found["psnr_mean"]
    out = capsys.readouterr().out
    assert f"{found['psnr_mean']:.2f}" in out and f"{found['drawn_psnr_mean']:.2f} dB" in out


def test_codes_that_are_not_drawn_have_no_floor(tmp_path: Path):
    from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

    small = {"image_size": 8, "base_channels": 8, "embed_dim": 8, "code_bits": 4, "channel_multipliers": (1, 2)}
    vq = BinaryAutoencoder(AutoencoderConfig(bottleneck="vq", **small))
    digits = ImageSet.open("digits", Preprocessing(8))
    assert held_out_entropy(vq, digits, torch.arange(4)) is None
