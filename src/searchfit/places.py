"""Where a file lies, here or behind a URL, and how its bytes are had: plain or compressed."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

import pyarrow as pa

from searchfit.errors import MissingExtraError, SourceError

BUFFER = 1 << 18
CLOUD = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
URLS = (*CLOUD, "memory")
"""The schemes that are read through fsspec; `file://` is a path like any other."""

TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet")
_GLOB = re.compile(r"[*?\[]")
_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
_NO_KEYS = re.compile(r"credential", re.IGNORECASE)
_DENIED = re.compile(r"access ?denied|forbidden|\b40[13]\b", re.IGNORECASE)


def _zstd(raw: Any) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, ValueError)
_CLIENTS = {
    "fsspec.exceptions": ("FSTimeoutError",),
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "azure.core.exceptions": ("AzureError",),
}
"""What the libraries of the stores raise beside OSError and ValueError."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file. `path` is its path on this machine or on the file system `remote` (fsspec); its string is the
    path or the URL."""

    path: str
    remote: Any = None

    def __str__(self) -> str:
        return self.path if self.remote is None else str(self.remote.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name if self.remote else Path(self.path).name

    @property
    def compression(self) -> str:
        """ ".gz", ".bz2", ".xz", ".zst", or "" for none."""
        suffix = PurePosixPath(self.name).suffix.lower()
        return suffix if suffix in _OPENERS else ""

    @property
    def suffix(self) -> str:
        """What kind of file it is: its last suffix in small letters, that of a compression not counted."""
        name = self.name[: -len(self.compression)] if self.compression else self.name
        return PurePosixPath(name).suffix.lower()

    def open(self) -> BinaryIO:
        """Its content, decompressed, from the beginning. Opening and reading raise SourceError where that
        cannot be had."""
        raw = self.seekable()
        if not self.compression:
            return raw
        unpacked = _Guarded(partial(_OPENERS[self.compression], raw), self, raw)
        return cast(BinaryIO, io.BufferedReader(unpacked, BUFFER))

    def seekable(self) -> BinaryIO:
        """Its bytes as they lie there, at random. Raises SourceError."""
        return cast(BinaryIO, io.BufferedReader(_Guarded(self._raw, self), BUFFER))

    def _raw(self) -> Any:
        if self.remote is None:
            return Path(self.path).open("rb", buffering=0)
        return self.remote.open(self.path, "rb")

    def mark(self) -> list[Any]:
        """[path or URL, bytes, ETag or time of change]: differs when the file does. Raises SourceError."""
        if self.remote is None:
            try:
                status = os.stat(self.path)
            except OSError as error:
                raise unreadable(self, error) from error
            return [os.path.abspath(self.path), status.st_size, status.st_mtime_ns]
        info = asked(self, partial(self.remote.info, self.path))
        return [str(self), info.get("size"), next((str(info[key]) for key in _MARKS if info.get(key)), "")]


class _Guarded(io.RawIOBase):
    """A stream whose every fault, of a file system far away or of damaged data, is a SourceError."""

    def __init__(self, make: Callable[[], Any], place: Place, raw: Any = None) -> None:
        self._place, self._raw = place, raw
        self._inner = asked(place, make)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw is None

    def readinto(self, buffer: Any) -> int:
        data = asked(self._place, partial(self._inner.read, len(buffer)), damage=self._raw is not None)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(asked(self._place, partial(self._inner.seek, offset, whence)))

    def tell(self) -> int:
        return int(self._inner.tell())

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            if self._raw is not None:
                self._raw.close()
        super().close()


def asked(place: Place | str, ask: Callable[[], Any], damage: bool = False) -> Any:
    """What `ask` returns. Raises SourceError for its faults, `damage` of compressed data among them."""
    try:
        return ask()
    except faults() as error:
        if damage and isinstance(error, _DAMAGE):
            raise SourceError(
                f"{place} is cut off or damaged: {first_line(error)}.", "Write or copy the file again."
            ) from error
        raise unreadable(place, error) from error


def faults() -> tuple[type[Exception], ...]:
    """What file systems, here and far away, and what unpacks files raise; all else is an error of ours."""
    loaded = ((sys.modules.get(module), names) for module, names in _CLIENTS.items())
    return (*_DAMAGE, *(getattr(module, name) for module, names in loaded if module for name in names))


def unreadable(place: Place | Path | str, error: Exception) -> SourceError:
    """The error for a file that cannot be reached."""
    return SourceError(*explained(place, error))


def explained(place: Place | Path | str, error: Exception, doing: str = "read") -> tuple[str, str]:
    """(message, hint) for a file that cannot be read, or what else was tried with it ("written")."""
    said = first_line(error)
    far = "://" in str(place)
    if isinstance(error, FileNotFoundError):
        hint = "Check the bucket and the key." if far else "Check the spelling and the current folder."
        return f"{place} does not exist.", hint
    if far and _NO_KEYS.search(said + type(error).__name__):
        return (
            f"{place} cannot be {doing} without credentials: {said}.",
            "Set those of the service in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_CONNECTION_STRING), or FSSPEC_S3_ANON=true for "
            "a public bucket.",
        )
    if isinstance(error, PermissionError) or (far and _DENIED.search(said)):
        keys = f"Check what the keys may {'read' if doing == 'read' else 'write'}."
        return (
            f"{place} may not be {doing}: permission denied.",
            keys if far else "Check the owner and mode of the file.",
        )
    return f"{place} cannot be {doing}: {getattr(error, 'strerror', '') or said}.", ""


def refuse(error: OSError) -> NoReturn:
    """Raise SourceError for a folder that os.walk cannot look into; of itself it would leave it out."""
    raise unreadable(error.filename, error) from error


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__


def is_glob(name: str) -> bool:
    """Whether a path has wild cards."""
    return bool(_GLOB.search(name))


def is_url(name: str) -> bool:
    """Whether it names a file elsewhere that can be read."""
    return name.partition("://")[0] in URLS and "://" in name


def local(name: str) -> str:
    """A path as the system takes it: ~ is the home folder, file:// stands for nothing."""
    return os.path.expanduser(name.strip().replace("\0", "").removeprefix("file://"))


def find_places(name: str) -> list[Place]:
    """The files that a path, URL or glob names, in order of their names; of a folder elsewhere, its tables.

    Raises SourceError where there is none, and MissingExtraError where what the scheme needs is not there.
    """
    if not is_url(name):
        return _here(local(name))
    remote, path = file_system(name)
    if is_glob(path):
        found = asked(name, partial(remote.glob, path))
    elif asked(name, partial(remote.isfile, path)):
        found = [path]
    elif asked(name, partial(remote.isdir, path)):
        below = asked(name, partial(remote.find, path))
        found = [file for file in below if is_table(file) and not _is_hidden_below(file, path)]
    else:
        raise unreadable(name, FileNotFoundError())
    if not found:
        raise SourceError(f"no file matches {name}.", f"Expected {', '.join(TABLES)}, compressed or not.")
    return [Place(file, remote) for file in sorted(found)]


def _here(path: str) -> list[Place]:
    if os.path.exists(path) or not is_glob(path):
        return [Place(path)]
    found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not found:
        raise SourceError(f"no file matches {path}.", "Check the spelling and the current folder.")
    return [Place(file) for file in found]


def is_table(name: str) -> bool:
    """Whether a file is a table, by its name."""
    return Place(name).suffix in TABLES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a sign that writers of tables leave (_SUCCESS, _temporary)."""
    return name.startswith((".", "_"))


def _is_hidden_below(file: str, folder: str) -> bool:
    return any(map(is_hidden, PurePosixPath(file.removeprefix(folder)).parts))


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """The file system (fsspec) of a URL and the path there. Raises SourceError, and MissingExtraError where
    what the scheme needs is not there."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        remote = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise MissingExtraError(f"a URL of {scheme}://", "cloud") from error
    except faults() as error:
        raise unreadable(url, error) from error
    return remote, str(remote._strip_protocol(url))
