"""Serves a local page on 127.0.0.1 until Ctrl-C."""

import contextvars
import socket
import threading
import webbrowser
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING

from wsss import stopping
from wsss.errors import BadInput, check_range
from wsss.terminal import show

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from wsss.review.guard import App

HOST = "127.0.0.1"
# Seconds that requests in progress have at the end
_LAST_REQUESTS = 3
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def check_installed(command: str) -> None:
    """Raise BadInput if the extra with the web server is not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        missing = error.name or "a package"
        do = "Install the extra for it: pip install 'wsss[review]'"
        raise BadInput(command, f"no {missing}", "starlette and uvicorn", do) from error


def page_routes(files: dict[str, str]) -> "list[Route]":
    """Routes of the files of a page.

    Args:
        files: names of files in the folder `page` by their addresses.
    """
    from starlette.responses import Response
    from starlette.routing import Route

    folder = resources.files("wsss.review") / "page"

    def serve(name: str) -> "Callable[[Request], Response]":
        kind = _KINDS[name[name.rindex(".") :]]
        content = (folder / name).read_bytes()
        return lambda request: Response(content, media_type=kind)

    return [Route(address, serve(name)) for address, name in files.items()]


def serve_page(app: "App", title: str, port: int, open_browser: bool) -> None:
    """Serve an application behind a `Guard`; print its address, and return after Ctrl-C or another signal to end.

    Args:
        app: the application.
        title: what the page is, for the terminal.
        port: the port, 0 for a free one.
        open_browser: open the page in the default browser.

    Raises:
        BadInput: the port is out of range or taken.
    """
    import uvicorn

    from wsss.review.guard import Guard, new_token

    listening = _listening(port)
    token = new_token()
    # no access log: the token is part of every address
    config = uvicorn.Config(
        Guard(app, token),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_REQUESTS,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()

    def run() -> None:
        try:
            server.run([listening])
        finally:
            ended.set()

    # the context has the locks of this command
    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="server", daemon=True).start()
    address = f"http://{HOST}:{listening.getsockname()[1]}/{token}/"
    try:
        show(f"{title}: {address}")
        show("Only this machine can open the page, and only with this address. Press Ctrl-C to end.")
        if open_browser:
            webbrowser.open(address)
        # not Thread.join: Python 3.11 takes a thread for finished if a signal interrupts that
        while not ended.wait(0.5):
            pass
        raise RuntimeError("the server ended unexpectedly")
    except stopping.Stopped:  # the usual end: nothing is unfinished
        server.should_exit = True
        ended.wait(_LAST_REQUESTS + 2)


def _listening(port: int) -> socket.socket:
    check_range("--port", port, 0, 65535)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()  # from here on a connection waits for the server, which starts after the address is shown
    except OSError as error:
        listening.close()
        do = "Choose another one with --port, or leave it out."
        raise BadInput("--port", f"{port}: {error.strerror}", "a free port", do) from error
    listening.set_inheritable(True)
    return listening
