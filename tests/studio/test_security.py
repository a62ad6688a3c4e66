"""What a stranger tries over HTTP: to read files, to make the server fetch, to use what the page does not need."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
from PIL import Image

from .odd_files import encoded, png_claiming
from .visitor import Refused, Visitor

NOWHERE = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/gradio_api/file=" + "0" * 32 + ".png",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1/",
    "/static/../../../../etc/passwd",
    "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/assets//etc/passwd",
    "/static/..%5c..%5cetc/passwd",
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/gradio_api/stream/a/b/c/playlist.m3u8",
    "/gradio_api/runs",
    "/gradio_api/deep_link",
    "/gradio_api/token",
    "/custom_component/x/y/z/w",
    "/docs",
    "/openapi.json",
    "/monitoring",
    "/monitoring/summary",
    "/login_check",
]
NOT_OFFERED = [
    "/gradio_api/run/predict",
    "/gradio_api/api/predict",
    "/gradio_api/call/predict",
    "/gradio_api/component_server",
    "/gradio_api/process_recording",
    "/gradio_api/vibe-edit",
    "/gradio_api/stream/x",
    "/gradio_api/queue/data",
    "/login",
    "/",
]


@pytest.fixture(scope="module")
def visitor(studio: str) -> Visitor:
    return Visitor(studio)


def raw(address: str, request: str) -> bytes:
    """An answer to a request that no client library would send as it is."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=600) as connection:
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("path", NOWHERE)
def test_nothing_but_the_page_can_be_read(studio: str, path: str):
    answer = raw(studio, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1] in (b"404", b"403"), answer[:300]
    assert b"root:" not in answer


def test_the_runs_own_files_cannot_be_read_and_its_folder_is_not_told(studio: str, visitor: Visitor, trained_run: Path):
    for path in (trained_run / "config.yaml", trained_run / "tokenizer" / "model.safetensors"):
        assert visitor.client.get(f"/gradio_api/file={path}").status_code == 404
    page = visitor.client.get("/").text + json.dumps(visitor.config)
    assert str(trained_run.parent) not in page and str(Path.home()) not in page and "bld-studio-" not in page


@pytest.mark.parametrize("path", NOT_OFFERED)
def test_only_the_queue_takes_work(visitor: Visitor, path: str):
    assert visitor.client.post(path, json={"data": [], "fn_index": 0}).status_code == 404


PATHS = [
    {"path": "/etc/passwd"},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"},
    {"path": "../../etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "http://127.0.0.1:{port}/x.png", "meta": {"_type": "gradio.FileData"}},
    {"path": "", "url": "http://127.0.0.1:{port}/x.png", "meta": {"_type": "gradio.FileData"}},
    {"url": "file:///etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "x.png", "url": "data:image/png;base64,aaaa", "meta": {"_type": "gradio.FileData"}},
    {"deep": [{"path": "/etc/passwd"}]},
]


@pytest.mark.parametrize("value", PATHS, ids=str)
def test_requests_that_name_files_or_addresses_are_refused_and_nothing_is_fetched(visitor: Visitor, value: dict):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.3)
        named = json.loads(json.dumps(value).replace("{port}", str(other.getsockname()[1])))
        with pytest.raises(Refused, match="upload"):
            visitor.join("bld-run-reconstruct", [named])
        with pytest.raises(TimeoutError):
            other.accept()


NO_REQUESTS = [b"", b"[]", b"7", b"{", b'{"a":' * 5000, b"\xff", b'{"data": NaN', b'{"fn_index": []}']


@pytest.mark.parametrize("body", NO_REQUESTS)
def test_a_request_that_is_no_request_is_refused(visitor: Visitor, body: bytes):
    headers = {"content-type": "application/json"}
    answer = visitor.client.post("/gradio_api/queue/join", content=body, headers=headers)
    assert answer.status_code == 400 and "arrive whole" in answer.json()["detail"]


def test_a_request_that_is_too_large_is_refused(visitor: Visitor):
    answer = visitor.client.post("/gradio_api/queue/join", content=b" " * (9 * 2**20))
    assert answer.status_code == 413 and "too large" in answer.json()["detail"]


def test_other_web_sites_cannot_use_the_studio_through_a_visitors_browser(visitor: Visitor, studio: str):
    foreign = visitor.client.get("/", headers={"host": "evil.example"})
    assert foreign.status_code == 403 and "127.0.0.1" in foreign.text
    for origin in ("http://evil.example", "null"):
        posted = visitor.client.post("/gradio_api/queue/join", json={}, headers={"origin": origin})
        assert posted.status_code == 403
    assert visitor.client.get("/", headers={"host": studio.replace("127.0.0.1", "localhost")[7:]}).status_code == 200
    policy = visitor.client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy


def test_uploads_that_are_no_pictures_are_refused_in_a_sentence(visitor: Visitor):
    for data, status in (
        (b"I am no image", 415),
        (png_claiming(100_000, 100_000), 415),
        (bytes(21 * 2**20), 413),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    ):
        answer = visitor.upload("picture.png", data)
        assert answer.status_code == status and answer.text.endswith("."), answer.text
    stream = (b"x" * 65536 for _ in range(400))  # says nothing of its length beforehand
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert visitor.client.post("/gradio_api/upload", content=stream, headers=headers).status_code in (400, 413)
    for content in (b"", b"--b\r\n", b"--b\r\nContent-Disposition: form-data; name=files\r\n\r\nx\r\n--b--\r\n"):
        assert visitor.client.post("/gradio_api/upload", content=content, headers=headers).status_code == 400


def test_an_upload_is_known_by_a_token_and_used_by_it(visitor: Visitor):
    data = encoded("JPEG", size=(40, 30))
    answer = visitor.upload("../../evil.png", data)
    (token,) = answer.json()
    assert len(token) == 36 and "/" not in token
    served = visitor.client.get(f"/gradio_api/file={token}")
    assert served.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(served.content)).size == (40, 30)
    picture = {
        "path": token,
        "url": "http://elsewhere/x",
        "orig_name": "x.svg",
        "meta": {"_type": "gradio.FileData"},
    }
    html, succeeded, _ = visitor.ask("bld-run-reconstruct", A_picture=picture)
    assert succeeded and "PSNR" in html and "40×30" in html and "/tmp" not in html
