"""Passwords in addresses: taken out where settings are made, and held in memory alone.

What is written down or shown (searchfit.toml, the manifest, the report, errors, logs) comes from the
settings, which therefore never hold a password. A process that starts anew has to be told it again.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

# In the address of a database a password may hold any sign unescaped; elsewhere a slash ends the host.
_ADDRESS = re.compile(
    r"(?P<head>(?:(?P<database>postgres|mysql|mariadb)|[A-Za-z])[\w+.-]*://[^:/@?#\s]*)"
    r":(?P<password>(?(database).*|[^/@?#\s]*))@(?P<rest>.*)",
    re.DOTALL,
)
_OPTION = re.compile(r"(?P<mark>[?&](?:password|passwd|sslpassword)=)(?P<password>[^&#\s]*)", re.IGNORECASE)

_held: dict[str, dict[str, str]] = {}


def take_password(address: str) -> str:
    """The address without its passwords, which are held for `password_of` and `options_of`."""
    shown, found = _split(address)
    if found:
        _held[shown] = found
    return shown


def password_of(address: str) -> str:
    """The password that an address came with, by the address that `take_password` gave; "" for none."""
    return _held.get(address, {}).get("", "")


def options_of(address: str) -> dict[str, str]:
    """The secret options behind the question mark that an address came with, `sslpassword` and the like."""
    return {name: value for name, value in _held.get(address, {}).items() if name}


def without_passwords(text: str) -> str:
    """A text, such as an argument of a command, without the passwords of the address in it."""
    return _split(text)[0]


def _split(address: str) -> tuple[str, dict[str, str]]:
    found: dict[str, str] = {}
    # The last @ ahead of the options ends the password: people do not escape the @ in theirs.
    body, mark, options = address.partition("?")
    whole = _ADDRESS.search(body) or (_ADDRESS.search(address) if "@" in options else None)
    if whole:
        found[""] = unquote(whole["password"])
        after = mark + options if whole.string is body else ""
        address = f"{address[: whole.start()]}{whole['head']}@{whole['rest']}{after}"
    if "://" in address:
        for option in _OPTION.finditer(address):
            name = option["mark"][1:-1].lower()
            found["" if name in ("password", "passwd") else name] = unquote_plus(option["password"])
        address = _OPTION.sub("", address)
        if "?" not in address:
            address = address.replace("&", "?", 1)
    return address, found
