"""The form that asks for the token."""

from __future__ import annotations

import re

from searchfit.markup import Markup, tag
from searchfit.server.page.html import failure, hidden


def local(path: str) -> str:
    """A path on this server; "/" for anything that would lead elsewhere."""
    return path if re.fullmatch(r"/(?![/\\])[^\x00-\x20\\\x7f]*", path) else "/"


def view(then: str, wrong: bool) -> list[Markup]:
    """The page; `then` is where to go with a right token."""
    field = tag(
        "input", type="password", name="token", required="", autocomplete="current-password", id="token"
    )
    said = (
        failure("This is not a token of this server.", "Tokens stand in its --token-file.")
        if wrong
        else Markup()
    )
    told = "This server asks for a token. It is kept in a cookie until you close the browser."
    form = tag(
        "form.choice",
        hidden([("next", local(then))]),
        # Password managers want to know whose it is.
        tag("input", type="text", name="username", value="searchfit", autocomplete="username", hidden=""),
        tag("label", tag("span", "Token"), field),
        tag("button.main", "Enter"),
        action="/login",
        method="post",
    )
    return [tag("h1", "Token"), tag("p.soft", told), said, form]
