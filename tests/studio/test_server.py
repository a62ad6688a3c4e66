"""How the studio is started: where it can be reached, and what keeps it from opening."""

from __future__ import annotations

import http.client
import os
import socket
import sys
from pathlib import Path

import pytest

from bld.cli import main
from bld.errors import MissingPackageError, SettingError
from bld.studio.model import Model
from bld.studio.server import FIRST_PORT, free_port, gradio_settings, is_loopback, launch


@pytest.mark.parametrize("port", [0, None, 7860])
def test_an_address_that_is_not_of_this_machine_is_named(port):
    with pytest.raises(SettingError, match=r"203\.0\.113\.7 .*--host"):  # kept for examples: nobody has it
        free_port("203.0.113.7", port)


def test_zero_is_any_free_port_and_none_the_first_from_7860():
    assert free_port("127.0.0.1", 0) > 1023
    assert FIRST_PORT <= free_port("127.0.0.1", None) < FIRST_PORT + 100


def test_a_taken_port_an_odd_one_and_a_strange_host_are_refused_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"{port} of 127\\.0\\.0\\.1 .*--port"):
            free_port("127.0.0.1", port)
    with pytest.raises(SettingError, match=r"\b0 and 65535.* 70000\b"):
        free_port("127.0.0.1", 70_000)
    with pytest.raises(SettingError, match=r"'no\.such\.host\.invalid'"):
        free_port("no.such.host.invalid", 0)


def test_the_verb_refuses_what_it_cannot_serve(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["studio", str(trained_run), "--queue", "0", "--device", "cpu"]) == 2
    assert "--queue 0" in capsys.readouterr().err
    assert main(["studio", str(tmp_path)]) == 2
    assert "model_index.json" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[studio\]"):
        launch(model, tmp_path, "127.0.0.1", 0, 4)


def test_settings_that_others_left_in_the_environment_do_not_open_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    left = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "HOME": "/root"}
    monkeypatch.setattr(os, "environ", dict(left))
    gradio_settings(tmp_path)
    expected = {"HOME": "/root", "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path)}
    assert os.environ == expected


@pytest.mark.parametrize(
    "host, alone", [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False)]
)
def test_which_hosts_this_machine_alone_can_reach(host: str, alone: bool):
    assert is_loopback(host) == alone


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_the_page_opens_under_any_loopback_host_behind_a_proxy(
    host: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("gradio")
    try:
        port = free_port(host, 0)
    except SettingError:
        pytest.skip(f"{host} is not here")
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", "no_proxy": "example.org"}
    monkeypatch.setattr(os, "environ", environment)
    page = launch(model, tmp_path, host, port, 4)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        page.close(verbose=False)
    assert environment["no_proxy"] == "example.org" and "NO_PROXY" not in environment


def test_only_so_many_visitors_are_remembered(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gradio")
    from .visitor import Visitor

    monkeypatch.setattr(os, "environ", dict(os.environ))
    port = free_port("127.0.0.1", 0)
    page = launch(model, tmp_path, "127.0.0.1", port, 4, visitors=2)
    try:
        visitors = [Visitor(f"http://127.0.0.1:{port}") for _ in range(4)]
        for visitor in [*visitors, visitors[0]]:  # who was forgotten is served as well
            assert visitor.ask("bld-run-generate", Pictures=1, Steps=1)[1]
        assert 0 < len(page.state_holder.session_data) <= 2
    finally:
        page.close(verbose=False)


def test_what_keeps_the_page_from_opening_is_said_in_a_sentence(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("gradio")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"{port} .*--port"):
            launch(model, tmp_path, "127.0.0.1", port, 4)
