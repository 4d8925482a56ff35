"""The page of `ask --web`, served by the standard library to this machine's browsers.

| request      | body                                   | answer                                |
|--------------|----------------------------------------|---------------------------------------|
| GET /        |                                        | the page, with this server's token    |
| POST /read   | a text, UTF-8                          | lines of JSON as it is read           |
| POST /ask    | {"id", "question", "task"}             | lines of JSON: the answer in pieces   |
| POST /origin | the same                               | lines of JSON, at last an inspection  |

No path leads to a file. A page of somebody else can ask nothing: it cannot read the token, which
each POST must bear in a header of its own, and a browser that was led here by another name (DNS
rebinding) says that name as `Host`, which is refused.
"""

import hmac
import http.server
import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from rmt_jax.errors import RmtError
from rmt_jax.evaluation import readings
from rmt_jax.evaluation.readings import TEXT_LIMIT, Event, Readings
from rmt_jax.report import ask_page

log = logging.getLogger(__name__)
HEADER = "X-Rmt-Token"
ASK_LIMIT = 16_000  # bytes of a question with what stands around it
SECONDS = 30  # that a browser may be silent in the middle of a request


class ServerError(RmtError):
    """The page cannot be served; the message is a sentence for the user."""


class Refused(Exception):
    """A request that gets a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str):
        super().__init__(sentence)
        self.status = status


class Server(http.server.ThreadingHTTPServer):
    """`serve_forever` serves the page; `address` is where. port 0: any that is free."""

    daemon_threads = True

    def __init__(self, held: Readings, host: str = "127.0.0.1", port: int = 8765, about: str = ""):
        self.readings, self.host, self.token = held, host, secrets.token_urlsafe(32)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.page = ask_page.page(self.token, about, TEXT_LIMIT).encode()
        self.policy = ask_page.policy()
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"Nothing can be served at {host}, port {port} ({error}): give another --port, or"
                " --port 0 for any that is free."
            ) from error

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def known_host(self, given: str) -> bool:
        """Whether a Host header names this server: by an address, which nobody can point elsewhere,
        by localhost, or by the name of --host."""
        try:
            parts = urlsplit(f"//{given}")
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if parts.username is not None or parts.path or port not in (None, self.server_address[1]):
            return False
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a browser went away", exc_info=True)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS
    server_version, sys_version = "rmt_jax", ""

    def do_GET(self) -> None:
        try:
            self._check_host()
            if self.path != "/":
                raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here but the page at /.")
        except Refused as refused:
            return self._refuse(refused)
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8", len(self.server.page))
        self.wfile.write(self.server.page)

    def do_POST(self) -> None:
        try:
            self._check_host()
            self._check_origin()
            events = self._events()
        except Refused as refused:
            return self._refuse(refused)
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        try:
            for event in events:
                self._line(event)
        except RmtError as error:
            self._line({"error": str(error)})
        except OSError:  # the browser went away
            events.close()  # type: ignore[attr-defined]
        except Exception:
            log.exception("a request failed")
            self._line({"error": "Something went wrong; the terminal says what."})

    def _events(self) -> Iterator[Event]:
        held = self.server.readings
        if self.path == "/read":
            return held.read(self._body(TEXT_LIMIT, "text"))
        ways = {"/ask": held.ask, "/origin": held.origin}
        if self.path not in ways:
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here but the page at /.")
        body = self._body(ASK_LIMIT, "question")
        try:
            said = json.loads(body)
            asked = [said[key] for key in ("id", "question", "task")]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Refused(
                HTTPStatus.BAD_REQUEST, 'A question is JSON: {"id", "question", "task"}.'
            ) from error
        if not all(isinstance(one, str) and _is_text(one) for one in asked):
            raise Refused(HTTPStatus.BAD_REQUEST, "Of a question, each part is a text.")
        return ways[self.path](*asked)

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.known_host(hosts[0]):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"This server is {self.server.address} and answers to no other name.",
            )

    def _check_origin(self) -> None:
        origin = self.headers.get("Origin")
        away = self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
        if away or origin is not None and origin != f"http://{self.headers['Host']}":
            raise Refused(HTTPStatus.FORBIDDEN, "Another page has no business here.")
        given = self.headers.get(HEADER, "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, self.server.token.encode()):
            raise Refused(
                HTTPStatus.FORBIDDEN, "The page is of a server that ended: load it again."
            )

    def _body(self, limit: int, what: str) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "A request must say its length.")
        if int(length) > limit:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The {what} has {int(length):,} bytes, and the page takes {limit:,} at most: for"
                " larger texts there is python -m rmt_jax.ask --file.",
            )
        try:
            body = self.rfile.read(int(length))
        except OSError as error:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "The rest did not come.") from error
        if len(body) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "The request ended before its length.")
        return body

    def _refuse(self, refused: Refused) -> None:
        body = json.dumps({"error": str(refused)}).encode()
        self._begin(refused.status, "application/json", len(body))
        self.wfile.write(body)
        self.wfile.flush()
        # A browser shows the answer only if what it still sends is taken.
        self.connection.settimeout(1)
        left = 4 * TEXT_LIMIT
        try:
            if self.command == "POST":
                self.connection.shutdown(socket.SHUT_WR)
                while left > 0 and (some := self.rfile.read1(1 << 16)):
                    left -= len(some)
        except OSError:
            pass

    def _line(self, event: Event) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def _begin(self, status: HTTPStatus, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Security-Policy": f"{self.server.policy}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        if length is not None:
            headers["Content-Length"] = str(length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def serve(model: Any, chat: Any, host: str, port: int) -> int:
    """Serves the page until Ctrl-C. Raises ServerError."""
    name = f"{model.config.model.cell} memory, segments of {model.segment_tokens} tokens"
    with Server(readings.Readings(model, chat), host, port, name) as server:
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        if host not in ("localhost", "::1") and not host.startswith("127."):
            log.warning("others who reach this machine can use the page: it asks for no password")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(flush=True)
    return 0
