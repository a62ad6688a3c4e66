"""One studio for all tests of a worker, as a process of its own, and one Chromium to look at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.studio.model import Model

QUEUE = 32


@pytest.fixture(scope="session")
def model(trained_run: Path) -> Model:
    return Model(BinaryLatentDiffusionPipeline.from_pretrained(trained_run), trained_run.name)


@pytest.fixture
def photo() -> Image.Image:
    """A picture that is not square and has colours."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def studio(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; at the end it is told to stop, leaves with status 0 and takes the uploads with it."""
    folder = tmp_path_factory.mktemp("studio")
    words = ["studio", str(trained_run), "--port", "0", "--queue", str(QUEUE), "--precision", "float32"]
    words += ["--device", "cpu"]
    log = folder / "log"
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "bld", *words], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield _address(process, log)
        assert list(folder.glob("bld-studio-*")), "the uploads lie where TMPDIR says"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=6000) == 0, log.read_text()
        assert not list(folder.glob("bld-studio-*"))
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"The studio did not open: {log.read_text()}")


# -- the browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium of the system; without one the tests are skipped, but not on a machine that calls itself CI."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        sentence = "There is no Chromium to look at the studio with: `make chromium` installs it."
        pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(studio: str, browser: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the studio; afterwards no page may have shown an error, or asked anyone but the studio for anything.

    `visit(refused=True)` allows for answers that refuse an upload, which a browser writes into its console.
    """
    contexts, complaints = [], []
    artifacts = Path(os.environ.get("BLD_ARTIFACTS") or tmp_path)

    def open_page(width: int = 1280, height: int = 900, refused: bool = False) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(300_000)

        def console(message: Any) -> None:
            if message.type == "error" and not (refused and "the server responded with a status of 4" in message.text):
                complaints.append(f"console: {message.text}")

        def requested(sent: Any) -> None:
            if not sent.url.startswith((studio, "data:", "blob:")):
                complaints.append(f"asked for {sent.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
        page.on("request", requested)
        page.goto(studio)
        page.wait_for_selector("#bld-run-generate")
        page.wait_for_selector(".bld-result[data-done]")  # the pictures it opens with
        return page

    yield open_page
    artifacts.mkdir(parents=True, exist_ok=True)
    for i, context in enumerate(contexts):
        for page in context.pages:
            name = re.sub(r"\W+", "-", request.node.name)
            page.screenshot(path=artifacts / f"{name}-{i}.png", full_page=True)
        context.close()
    assert not complaints, complaints
