"""Serve the page: on this machine only unless asked otherwise; the folder of uploads is deleted at the end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bld.errors import MissingPackageError, SettingError
from bld.studio.model import Model

FIRST_PORT = 7860
PORTS_TRIED = 100
VISITORS_REMEMBERED = 64  # Gradio keeps the last pictures of each, several MB
STOPS_WAITING = 64  # beyond the requests for work, of which there may be --queue


def serve(
    model: Model,
    say: Callable[[str], None],
    host: str = "127.0.0.1",
    port: int | None = None,
    queue: int = 16,
    open_browser: bool = False,
) -> None:
    """Serve until interrupted (SIGINT or SIGTERM).

    Args:
        model: what visitors use.
        say: is told the address.
        host: the name or address to serve under; others than the loopback ones can be reached from other machines.
        port: None takes the first free one from 7860, 0 any free one.
        queue: requests that may wait.
        open_browser: whether to open the page in a browser.

    Raises:
        SettingError: where host or port cannot be had, or `queue` is below 1.
        MissingPackageError: without Gradio.
    """
    if queue < 1:
        raise SettingError(f"At least 1 request may wait, not --queue {queue}.")
    host = host.strip("[]")  # as addresses of IPv6 are written in a browser
    port = free_port(host, port)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    with (
        tempfile.TemporaryDirectory(prefix="bld-studio-", ignore_cleanup_errors=True) as folder,
        _until_stopped() as wait,
    ):
        page = launch(model, Path(folder), host, port, queue)
        try:
            address = f"http://{'127.0.0.1' if host == '0.0.0.0' else _in_address(host)}:{port}"
            say(f"The studio of {model.name} is open at {address} (Ctrl+C closes it).")
            if not is_loopback(host):
                say(f"Anyone who can reach {host} can use it: there is no password.")
            if open_browser:
                import webbrowser

                webbrowser.open(address)
            wait()
        finally:
            page.close(verbose=False)


def launch(model: Model, folder: Path, host: str, port: int, queue: int, visitors: int = VISITORS_REMEMBERED) -> Any:
    """The running page, behind its gate; uploads lie in the folder; `SettingError` where it cannot be opened."""
    gradio_settings(folder)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "The studio needs Gradio, which is not installed: pip install 'binary-latent-diffusion[studio]'."
        ) from error
    from starlette.middleware import Middleware

    from bld.studio import app
    from bld.studio.security import LOOPBACK, Gate, Line
    from bld.studio.uploads import MOST_BYTES, Uploads

    hosts = LOOPBACK | {host} if is_loopback(host) else None
    blocks = app.build(model)
    blocks.queue(max_size=queue + STOPS_WAITING, api_open=False, default_concurrency_limit=1)
    line = Line(queue, lambda: len(blocks._queue), app.urgent(blocks))
    gate = Middleware(Gate, uploads=Uploads(folder), line=line, hosts=hosts)
    try:
        with _without_proxy(host):
            blocks.launch(
                server_name=_in_address(host),
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inline=False,
                show_error=False,
                max_file_size=MOST_BYTES,
                allowed_paths=[],
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                state_session_capacity=visitors,  # without gr.State nobody misses what is forgotten
                run_history=False,
                footer_links=[],
                app_kwargs={"middleware": [gate]},
                theme=app.theme(),
                css=app.style(),
                head=app.script(),
            )
    except Exception as error:  # Gradio, its server and its client raise nearly anything
        blocks.close(verbose=False)
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise SettingError(
            f"The studio cannot be opened at {host}, port {port} ({reason}): try another --host or --port."
        ) from error
    return blocks


def _in_address(host: str) -> str:
    """The host as it stands in an address: that of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


@contextmanager
def _without_proxy(host: str) -> Iterator[None]:
    """A context in which this host is asked for directly: Gradio looks whether its own page answers."""
    names = ("no_proxy", "NO_PROXY")
    before = {name: os.environ.get(name) for name in names}
    left_out = [value for value in [next(filter(None, before.values()), None), host, "localhost"] if value]
    os.environ.update(dict.fromkeys(names, ",".join(left_out)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def gradio_settings(folder: Path) -> None:
    """Set what Gradio reads from the environment when it is imported, in place of what is set there."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)


def free_port(host: str, port: int | None) -> int:
    """A free port.

    Args:
        host: where it is to be free.
        port: the one asked for; None tries 100 from 7860 on, 0 takes any.

    Raises:
        SettingError: where none of these can be used, or where the host is not here.
    """
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else [port]
    for candidate in candidates:
        if not 0 <= candidate < 65536:
            raise SettingError(f"A port lies between 0 and 65535, not at {candidate}.")
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host, candidate))
                return int(trial.getsockname()[1])
        except socket.gaierror as error:
            raise SettingError(f"There is no host '{host}' here: try 127.0.0.1.") from error
        except PermissionError as error:
            raise SettingError(f"Port {candidate} may not be used: name one above 1023 with --port.") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingError(f"{host} is no address of this machine: try --host 127.0.0.1.") from error
    where = f"{FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}" if port is None else str(port)
    raise SettingError(f"Port {where} of {host} cannot be used: name another with --port, or 0 for any free one.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def _until_stopped() -> Iterator[Callable[[], None]]:
    """A function that waits for SIGINT or SIGTERM; both are as they were afterwards."""
    stopped = threading.Event()
    before = {name: signal.signal(name, lambda *_: stopped.set()) for name in (signal.SIGINT, signal.SIGTERM)}

    def wait() -> None:
        while not stopped.wait(1):
            pass

    try:
        yield wait
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
