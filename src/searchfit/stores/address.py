"""The address of a store outside of the workspace, without its secrets where it is shown or kept."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from searchfit.errors import SettingsError

SCHEMES = {
    "postgresql": "postgresql://user@host/database?table=NAME",
    "postgres": "postgresql://user@host/database?table=NAME",
    "qdrant": "qdrant://host:6333?collection=NAME or qdrant:///folder?collection=NAME",
    "qdrants": "qdrants://host?collection=NAME",
    "pinecone": "pinecone://index-name?namespace=NAME",
}
"""The kinds of stores, and how their addresses are written."""

_SECRETS = ("password", "sslpassword")
_MAX_NAME = 40


@dataclass(frozen=True, slots=True)
class Address:
    """A store's URL. `str()` shows it without password; only `secret_url` holds one."""

    secret_url: str

    def __post_init__(self) -> None:
        if self._parts.scheme not in SCHEMES:
            forms = "\n  ".join(dict.fromkeys(SCHEMES.values()))
            shown = str(self) if "://" in self.secret_url else self.secret_url
            raise SettingsError(
                f"{shown!r} is not the address of a store.", f'Write "local" or one of:\n  {forms}'
            )

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def __str__(self) -> str:
        parts = self._parts
        user, at, host = parts.netloc.rpartition("@")
        kept = [(name, value) for name, value in self._pairs() if name not in _SECRETS]
        return self._with(user.partition(":")[0] + at + host, kept)

    @property
    def scheme(self) -> str:
        """What kind of store it is."""
        return self._parts.scheme

    @property
    def host(self) -> str:
        """Host and port as they were written; empty for a folder."""
        return self._parts.netloc.rpartition("@")[2]

    @property
    def path(self) -> str:
        """The path behind the host."""
        return unquote(self._parts.path)

    def options(self, known: tuple[str, ...]) -> dict[str, str]:
        """The options behind the question mark. Raises SettingsError for one that is not known."""
        options = dict(self._pairs())
        if unknown := [name for name in options if name not in known]:
            raise SettingsError(
                f"the store {self} has an unknown option {unknown[0]!r}.",
                f"Its options are: {', '.join(known)}.",
            )
        return options

    def without(self, *names: str) -> str:
        """The URL, secrets and all, without these options."""
        kept = [(name, value) for name, value in self._pairs() if name not in names]
        return self._with(self._parts.netloc, kept)

    def name(self, option: str) -> str:
        """The table, collection or namespace; "searchfit" where the address names none. Raises
        SettingsError for one that is empty or too long."""
        name = dict(self._pairs()).get(option, "searchfit")
        if not 0 < len(name.encode()) <= _MAX_NAME or "\0" in name:
            raise SettingsError(f"{option} must have 1 to {_MAX_NAME} bytes, got {name!r}.")
        return name

    def choice(self, option: str, choices: tuple[str, ...]) -> str:
        """The value of an option, of the choices the first where the address has none. Raises SettingsError
        for another value."""
        value = dict(self._pairs()).get(option, choices[0])
        if value not in choices:
            raise SettingsError(f"{option} is one of {', '.join(choices)}, got {value!r}.")
        return value

    @property
    def _parts(self) -> SplitResult:
        try:
            return urlsplit(self.secret_url)
        except ValueError as error:
            raise SettingsError(f"the address of the store cannot be read: {error}.") from None

    def _with(self, netloc: str, options: list[tuple[str, str]]) -> str:
        """The URL with another host part and other options; urlunsplit would shorten ":///" here."""
        query = f"?{urlencode(options)}" if options else ""
        return f"{self.scheme}://{netloc}{self._parts.path}{query}"

    def _pairs(self) -> list[tuple[str, str]]:
        return parse_qsl(self._parts.query, keep_blank_values=True)
