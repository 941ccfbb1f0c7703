"""Who may ask: bearer tokens, and what keeps other pages in the user's browser out."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlencode, urlsplit

from searchfit.errors import SettingsError
from searchfit.server.errors import ApiError, RefusedError, UnauthorizedError, WrongHostError, response_of

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "searchfit_token"
"""A cookie that may hold the token, for the page: HttpOnly and SameSite=Strict."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_SAFE = {"GET", "HEAD", "OPTIONS"}
_LEAST = 16


class Guard:
    """Checks requests. Without tokens everybody may ask; `hosts`, where there are any, are the only names
    that the server answers to, which keeps out a foreign page whose name was pointed at this machine (DNS
    rebinding). `origins` are those whose pages may send changes. `public` paths need no token: the page
    adds its own."""

    def __init__(
        self, tokens: Iterable[str] = (), hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._digests = [_digest(token) for token in tokens]
        self.hosts, self.origins = frozenset(hosts), frozenset(origins)
        self.public = {"/livez"}
        self.login = ""  # the path that people without a token are sent to

    @property
    def needed(self) -> bool:
        """Whether a token is needed."""
        return bool(self._digests)

    def knows(self, token: str) -> bool:
        """Whether this is one of the tokens, in a time that tells nothing about them."""
        digest = _digest(token)
        return sum(hmac.compare_digest(digest, own) for own in self._digests) > 0

    def check(self, scope: Scope) -> None:
        """Raises WrongHostError, UnauthorizedError, and RefusedError for a change that another site's page
        sent."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.hosts and _split(f"//{host}").hostname not in self.hosts:
            raise WrongHostError(
                "this server answers to its own name only.", "Serve with --token-file to allow other names."
            )
        origin = headers.get("origin", "")
        foreign = origin and _split(origin).netloc != host and not self.origins & {origin, "*"}
        if foreign and scope["method"] not in _SAFE:
            raise RefusedError("a page of another site sent this.", "Serve with --cors to allow its origin.")
        if self.needed and scope["path"] not in self.public and not self.knows(_token(headers)):
            raise UnauthorizedError(
                "a token is needed.",
                "Send the header Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )


class Guarded:
    """The ASGI layer of a Guard: it stands before anything of the body is read."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "http":
            try:
                self.guard.check(scope)
            except UnauthorizedError as error:
                response = _to_login(scope, self.guard.login) or response_of(error)
                await response(scope, receive, send)
                return
            except ApiError as error:
                await response_of(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def read_tokens(file: Path) -> Sequence[str]:
    """The tokens of a file, one a line; lines that begin with # are comments. Raises SettingsError for a file
    that cannot be read, has none, or has one that is too short to be a secret or that no header can hold."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the file of tokens {file} cannot be read: {error}.") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    hint = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
    if not tokens:
        raise SettingsError(f"the file of tokens {file} has none.", hint)
    if short := [number for number, token in enumerate(tokens, start=1) if len(token) < _LEAST]:
        raise SettingsError(f"token {short[0]} of {file} has fewer than {_LEAST} characters.", hint)
    if odd := [number for number, token in enumerate(tokens, start=1) if not token.isascii()]:
        raise SettingsError(f"token {odd[0]} of {file} has characters other than ASCII.", hint)
    return tokens


def _to_login(scope: Scope, login: str) -> Response | None:
    """The way to the form that asks for a token, for people who open a page."""
    from starlette.responses import RedirectResponse

    accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
    if not login or scope["method"] != "GET" or b"text/html" not in accept:
        return None
    path = scope["path"] + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
    return RedirectResponse(f"{login}?{urlencode({'next': path})}", 303)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _token(headers: dict[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    from starlette.requests import cookie_parser  # as lenient as browsers: one odd cookie spoils no other

    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # half of an IPv6 address
        return urlsplit("")
