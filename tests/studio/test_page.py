"""The page in a real Chromium: every task from its controls to its files, by mouse and by keyboard, wide and narrow."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bld.studio.model import Model
from bld.studio.tabs.reconstruct import reconstruct
from bld.studio.tasks import square

from .odd_files import png_claiming

TABS = ["Generate", "Inpaint", "Reconstruct", "Interpolate", "Flip bits", "Compare"]
Visit = Callable[..., Any]


def open_tab(page: Any, name: str) -> Any:
    """Go to a tab, which on a narrow screen may be in the menu; returns what it shows."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()
    panel = page.locator("[role=tabpanel]:visible")
    panel.locator("[id^=bld-run-]").wait_for()
    return panel


def number(panel: Any, label: str, value: float) -> None:
    """Write into the number beside a slider."""
    box = panel.get_by_label(f"number input for {label}")
    box.fill(str(value))
    box.press("Tab")


def run(panel: Any) -> Any:
    """Press the button and wait for what comes out, not for what stands there already."""
    forget(panel)
    panel.locator("[id^=bld-run-]").click()
    return result(panel)


def forget(panel: Any) -> None:
    """Let what stands there count as old."""
    panel.locator(".bld-result").evaluate_all("results => results.forEach(one => delete one.dataset.done)")


def result(panel: Any) -> Any:
    output = panel.locator(".bld-result[data-done]")
    output.wait_for()
    return output


def files_of(page: Any, output: Any) -> dict[str, bytes]:
    """The archive that the page offers."""
    with page.expect_download() as download:
        output.get_by_text("Save all (ZIP)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def upload(panel: Any, picture: Image.Image, path: Path, nth: int = 0) -> None:
    picture.save(path)
    panel.locator("input[type=file]").nth(nth).set_input_files(path)
    panel.get_by_label("Clear").or_(panel.get_by_label("Remove Image")).nth(nth).wait_for()


def test_generate_shows_the_model_and_makes_the_pictures_of_its_settings(visit: Visit, model: Model):
    page = visit()
    head = page.locator(".bld-head").inner_text()
    assert all(words in head for words in (model.name, "8×8", "4×4×32, 64 bytes", "10", "cpu, float32"))
    panel = open_tab(page, "Generate")
    panel.get_by_label("Class", exact=True).click()
    page.get_by_role("option", name="7", exact=True).click()
    panel.get_by_label("Seed", exact=True).fill("11")
    number(panel, "Steps", 5)
    number(panel, "Pictures", 3)
    output = run(panel)
    assert output.locator("figcaption").all_inner_texts() == ["7", "7", "7"]
    files = files_of(page, output)
    settings = json.loads(files["settings.json"])
    expected = {"num_images": 3, "class_labels": 7, "num_inference_steps": 5, "generator": 11}
    assert expected.items() <= settings["call"].items()
    for i, image in enumerate(model.pipe(**settings["call"]).images):
        assert np.array_equal(pixels(files[f"seed11-{i:03d}.png"]), np.asarray(image))
    with page.expect_download() as download:
        output.locator("[data-save]").nth(1).click()
    saved = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename == "seed11-001.png" and saved == files["seed11-001.png"]


def test_the_page_opens_with_a_picture_of_each_class_which_the_button_makes_again(visit: Visit, model: Model):
    page = visit()
    panel = page.locator("[role=tabpanel]:visible")
    opening = result(panel)
    assert opening.locator("figcaption").all_inner_texts() == model.classes
    before = files_of(page, opening)
    again = files_of(page, run(panel))
    assert set(before) == set(again) and all(before[name] == again[name] for name in before if name.endswith(".png"))
    expected = model.pipe(10, class_labels=list(range(10)), generator=0).images
    assert all(np.array_equal(pixels(before[f"seed0-{i:03d}.png"]), np.asarray(expected[i])) for i in range(10))


@pytest.mark.parametrize("tab", ["Inpaint", "Reconstruct", "Interpolate", "Flip bits"])
def test_a_click_on_a_held_out_picture_uploads_it_and_another_takes_its_place(
    visit: Visit, trained_run: Path, tab: str
):
    page = visit()
    panel = open_tab(page, tab)
    for words in ("First: an upload in place of the seed", "Picture: an upload in place of the seed"):
        if panel.get_by_text(words).count():
            panel.get_by_text(words).click()
    files = sorted((trained_run / "examples").glob("held-out-*.png"))
    panel.locator(".bld-examples").first.locator("[data-example]").last.wait_for()  # an accordion opens in its time
    assert len(files) == panel.locator(".bld-examples").first.locator("[data-example]").count() == 8
    for number_, file in ((2, files[2]), (5, files[5])):
        example = panel.locator(f"[data-example='held-out-{number_}.png']").first
        example.focus()
        with page.expect_response(lambda answer: "/upload" in answer.url and answer.request.method == "POST") as sent:
            page.keyboard.press("Enter")
        token = sent.value.json()[0]
        shown = panel.locator(f".bld-upload img[src*='{token}']").first
        shown.wait_for()
        picture = page.request.get(shown.get_attribute("src")).body()
        assert np.array_equal(pixels(picture), pixels(file.read_bytes()))


def test_generation_needs_no_mouse(visit: Visit, model: Model):
    page = visit()
    page.locator("body").press("Tab")

    def tab_to(condition: str) -> None:
        for _ in range(60):
            if page.evaluate(f"(() => {{ const e = document.activeElement; return {condition}; }})()"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"never came to {condition}")

    tab_to("e.getAttribute('aria-label') === 'Seed'")
    page.keyboard.press("Control+a")
    page.keyboard.type("23")
    tab_to("e.id === 'bld-run-generate'")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    forget(page.locator("[role=tabpanel]:visible"))
    page.keyboard.press("Enter")
    output = result(page.locator("[role=tabpanel]:visible"))
    tab_to("e.matches('[data-save]')")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    image = model.pipe(10, class_labels=list(range(10)), generator=23).images[0]
    assert np.array_equal(pixels(Path(download.value.path()).read_bytes()), np.asarray(image))
    assert output.locator("[data-save]").count() == 10


def test_inpaint_fills_what_is_brushed_or_marked_with_the_keyboard(
    visit: Visit, model: Model, photo: Image.Image, tmp_path: Path
):
    page = visit()
    panel = open_tab(page, "Inpaint")
    upload(panel, photo, tmp_path / "photo.png")
    canvas = panel.locator(".bld-painter canvas")
    canvas.wait_for()
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "Space"):  # the second row and column of positions, 2×2 pixels each
        page.keyboard.press(key)
    number(panel, "Fillings", 2)
    number(panel, "Steps", 4)
    files = files_of(page, run(panel))
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[2:4, 2:4] = 255
    assert np.array_equal(pixels(files["mask.png"]), mask)
    picture, hole = (Image.open(io.BytesIO(files[name])) for name in ("picture.png", "mask.png"))
    assert np.array_equal(np.asarray(picture), np.asarray(square(model, photo)))
    call = json.loads(files["settings.json"])["call"]
    for i, image in enumerate(model.pipe.inpaint(picture, hole, **call).images):
        assert np.array_equal(pixels(files[f"filled-seed0-{i:03d}.png"]), np.asarray(image))

    panel.get_by_role("button", name="Clear", exact=True).last.click()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"], steps=4)
    page.mouse.up()
    marked = pixels(files_of(page, run(panel))["mask.png"])[:, :, 0] > 0
    assert marked[0].sum() >= 6 and not marked[3:].any()


def test_a_stop_leaves_what_is_there_and_the_page_can_be_used_on(
    visit: Visit, model: Model, photo: Image.Image, tmp_path: Path
):
    page = visit()
    panel = open_tab(page, "Inpaint")
    upload(panel, photo, tmp_path / "photo.png")
    panel.locator(".bld-painter canvas").wait_for()
    panel.get_by_role("button", name="Invert").click()
    for label, value in (("Fillings", 64), ("Resampling", 8), ("Steps", 64)):
        number(panel, label, value)
    panel.locator("[id^=bld-run-]").click()
    panel.locator(".bld-steps").wait_for()
    panel.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('.bld-steps span')?.textContent.startsWith('Stopped after step')")
    number(panel, "Fillings", 1)
    number(panel, "Resampling", 1)
    number(panel, "Steps", 2)
    assert run(panel).locator("figure").count() == 3


def test_reconstruct_shows_psnr_bits_and_bytes(visit: Visit, model: Model, photo: Image.Image, tmp_path: Path):
    page = visit()
    panel = open_tab(page, "Reconstruct")
    upload(panel, photo, tmp_path / "photo.jpg")
    output = run(panel)
    seen = Image.open(tmp_path / "photo.jpg")
    expected = dict(reconstruct(model, seen, lambda _: None).facts)
    text = output.inner_text()
    assert all(value in text for value in expected.values()) and "Upload, 36×24" in text
    with page.expect_download() as download:
        output.get_by_role("link", name="code.bin").click()
    assert Path(download.value.path()).read_bytes() == reconstruct(model, seen, lambda _: None).files["code.bin"]


def test_interpolate_goes_from_a_seed_to_an_upload(visit: Visit, model: Model, photo: Image.Image, tmp_path: Path):
    page = visit()
    panel = open_tab(page, "Interpolate")
    panel.get_by_text("Second: an upload in place of the seed").click()
    panel.locator("input[type=file]").last.wait_for(state="attached")
    photo.save(tmp_path / "photo.png")
    panel.locator("input[type=file]").last.set_input_files(tmp_path / "photo.png")
    panel.get_by_label("Remove Image").or_(panel.get_by_label("Clear")).first.wait_for()
    number(panel, "Pictures", 4)
    number(panel, "Steps", 4)
    output = run(panel)
    assert output.locator("figcaption").all_inner_texts() == ["0%", "33%", "67%", "100%"]
    files = files_of(page, output)
    first = model.pipe(1, num_inference_steps=4, generator=0).images[0]
    assert np.array_equal(pixels(files["between-00.png"]), np.asarray(first))
    assert np.array_equal(pixels(files["between-03.png"]), np.asarray(model.pipe.reconstruct(photo)[0]))


def test_a_click_on_a_position_flips_its_bit(visit: Visit, model: Model):
    page = visit()
    panel = open_tab(page, "Flip bits")
    panel.locator("#bld-show").click()
    board = panel.locator(".bld-choose")
    board.wait_for()
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    board.click(position={"x": 0.9 * box["width"], "y": 0.35 * box["height"]})  # row 2, column 4 of 4
    settings = json.loads(files_of(page, result(panel))["settings.json"])
    assert (settings["row"], settings["column"], settings["bit"]) == (2, 4, 1)
    assert panel.get_by_label("number input for Column").input_value() == "4"
    number(panel, "Bit", 9)
    panel.locator("[id^=bld-run-]").click()
    panel.get_by_text("bit 9 flipped").wait_for()


def test_compare_sets_columns_side_by_side(visit: Visit, model: Model):
    page = visit()
    panel = open_tab(page, "Compare")
    panel.get_by_label("Column C").check()
    panel.get_by_label("plugin").last.check()
    for letter, steps in (("A", 2), ("B", 4), ("C", 4)):
        number(panel, f"Steps {letter}", steps)
    number(panel, "Pictures", 2)
    output = run(panel)
    headings = output.locator("h3").all_inner_texts()
    assert [heading.split(",")[0] for heading in headings] == ["A: 2 steps", "B: 4 steps", "C: 4 steps"]
    assert headings[2].endswith("plugin")
    tops = [section.bounding_box()["y"] for section in output.locator("section").all()]
    assert max(tops) - min(tops) < 2
    files = files_of(page, output)
    for column in json.loads(files["settings.json"])["columns"]:
        images = model.pipe.with_posterior(column["posterior"])(**column["call"]).images
        assert np.array_equal(pixels(files[f"{column['column']}-seed0-001.png"]), np.asarray(images[1]))


def test_wrong_uploads_are_refused_in_a_sentence_and_the_page_can_be_used_on(
    visit: Visit, photo: Image.Image, tmp_path: Path
):
    page = visit(refused=True)
    panel = open_tab(page, "Reconstruct")
    (tmp_path / "text.png").write_text("I am no image")
    (tmp_path / "bomb.png").write_bytes(png_claiming(100_000, 100_000))
    (tmp_path / "large.png").write_bytes(bytes(21 * 2**20))
    for name, words in (
        ("text", "cannot be"),
        ("bomb", "more than 32 million pixels"),
        ("large", "maximum allowed size"),
    ):
        panel.locator("input[type=file]").set_input_files(tmp_path / f"{name}.png")
        toast = page.get_by_test_id("toast-body").filter(has_text=words)
        toast.wait_for()
        assert "HTTP" not in toast.inner_text()
    panel.locator("[id^=bld-run-]").click()
    panel.locator(".bld-problem", has_text="There is no picture yet").wait_for()
    upload(panel, photo, tmp_path / "photo.png")
    run(panel)


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_shows_every_tab_without_scrolling_sideways(visit: Visit, width: int):
    page = visit(width=width, height=740)
    for name in TABS:
        panel = open_tab(page, name)
        if name in ("Generate", "Compare"):
            number(panel, "Pictures", 4)
            run(panel)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        for control in panel.locator("button:visible, input:visible").all()[:40]:
            box = control.bounding_box()
            assert box is None or (box["x"] >= -1 and box["x"] + box["width"] <= width + 1), name
