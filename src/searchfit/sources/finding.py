"""Which files below a folder are documents, and of which kind."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from mimetypes import MimeTypes
from pathlib import Path, PurePosixPath

from searchfit.config import FilesSettings
from searchfit.errors import SettingsError
from searchfit.parsers import UnparsableError, others
from searchfit.parsers.child import unpacked
from searchfit.parsers.text import decode
from searchfit.places import is_glob, is_table, refuse
from searchfit.sources.files import HEAD_BYTES

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "rst",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".eml": "eml",
    ".mbox": "mbox",
}
"""The kind of a file by the end of its name, each also with .gz after it."""

_MIME = MimeTypes()  # its own table, not the machine's


@dataclass(frozen=True, slots=True)
class Found:
    """A file: its path, its id below the folder, its kind ("" where it is none of ours), whether it ends in
    .gz."""

    path: Path
    id: str
    kind: str
    packed: bool = False


def kind_of(name: str, parser: str = "builtin") -> tuple[str, bool]:
    """The kind of a file by its name, and whether it is packed."""
    place = PurePosixPath(name)
    packed = place.suffix.lower() == ".gz"
    suffix = PurePosixPath(place.stem).suffix.lower() if packed else place.suffix.lower()
    if parser != "builtin" and suffix in others.SUFFIXES and not packed:
        return "other", False
    return KINDS.get(suffix, ""), packed


def split_glob(name: str) -> tuple[str, str]:
    """The folder and the glob of a source such as docs/**/*.pdf; "" for a name without wild cards."""
    parts = Path(name).parts
    wild = next((place for place, part in enumerate(parts) if is_glob(part)), len(parts))
    return str(Path(*parts[:wild])), "/".join(parts[wild:])


class Chooser:
    """What the settings say of a file: read it as which kind, or leave it out."""

    def __init__(self, settings: FilesSettings, glob: str = "") -> None:
        """Raises SettingsError for a glob that leads out of the folder."""
        for pattern in (*settings.include, *settings.exclude):
            if ".." in pattern.split("/") or pattern.startswith("/"):
                raise SettingsError(
                    f"the glob {pattern!r} leads out of the folder that is read.",
                    'Expected one that holds for paths below it, such as "**/*.pdf".',
                )
        self._parser = settings.parser
        self._glob, self._include, self._exclude = glob, settings.include, settings.exclude

    def wanted(self, id_: str) -> bool:
        """Whether no glob speaks against it."""
        included = not self._include or any(_fits(id_, glob) for glob in self._include)
        excluded = any(_fits(id_, glob) for glob in self._exclude)
        return included and not excluded and (not self._glob or _fits(id_, self._glob))

    def kind(self, path: Path, id_: str) -> tuple[str, bool]:
        """Its kind, and whether it is packed. A file without an extension is text where its first bytes
        are, as is one of an extension before .gz that nobody knows (changelog.Debian.gz); another of an
        unknown extension where a glob names that."""
        kind, packed = kind_of(id_, self._parser)
        suffix = path.suffix.lower()
        if kind:
            return kind, packed
        if suffix and not (packed and _may_be_text(path.name)):
            globs = (*self._include, self._glob)
            return ("text" if any(glob.lower().endswith(suffix) for glob in globs) else ""), packed
        return ("text" if _begins_as_text(path, packed) else ""), packed


def find_files(root: Path, chooser: Chooser, left: Counter[str]) -> list[Found]:
    """The documents below `root` in order of their paths; those of other kinds are counted into `left` by
    their extension. Hidden files and folders are skipped, and what is no file: pipes, devices, dead links."""
    found = []
    for path in _walk(root):
        id_ = path.relative_to(root).as_posix()
        if not chooser.wanted(id_) or not _is_file(path):
            continue
        kind, packed = chooser.kind(path, id_)
        if kind:
            found.append(Found(path, id_, kind, packed))
        else:
            left[path.suffix.lower()] += 1
    return sorted(found, key=lambda file: file.id)


def _walk(root: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()  # a folder reached again through a symbolic link is not read again
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _is_file(path: Path) -> bool:
    """Not a pipe or a device, which would block; a link that leads nowhere is none either."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _may_be_text(name: str) -> bool:
    """Whether the extension before .gz is none of another kind: .json.gz, .svg.gz."""
    return not is_table(name) and _MIME.guess_type(PurePosixPath(name).stem)[0] in {None, "text/plain"}


def _begins_as_text(path: Path, packed: bool) -> bool:
    try:
        if packed:
            head = unpacked(os.fspath(path), HEAD_BYTES)
        else:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        return b"\0" not in head and bool(decode(head))
    except (OSError, UnparsableError):
        return False


def _fits(id_: str, glob: str) -> bool:
    return _parts_fit(id_.lower().split("/"), glob.lower().split("/"))


def _parts_fit(parts: Sequence[str], globs: Sequence[str]) -> bool:
    """Part by part; ** stands for any number of them."""
    if not globs:
        return not parts
    if globs[0] == "**":
        return any(_parts_fit(parts[skip:], globs[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], globs[0]) and _parts_fit(parts[1:], globs[1:])
