"""Right and wrong, as people mark results: judgements of the workspace, read again when they change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from searchfit.feedback import plain
from searchfit.judgements import JUDGEMENTS, Record


class Marks:
    """The judgements of workspaces, kept in memory as long as their files are what they were."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[Path, tuple[tuple[int, int], dict[tuple[str, str], dict[str, int]]]] = {}

    def of(self, workspace: Path, judge: str, query: str) -> Mapping[str, int]:
        """Grades by document id. It may read the whole file. Raises WorkspaceError for a damaged one."""
        try:
            status = (workspace / JUDGEMENTS).stat()
        except FileNotFoundError:
            return {}
        stamp = status.st_mtime_ns, status.st_size
        with self._lock:
            held = self._held.get(workspace)
            if held is None or held[0] != stamp:
                grades: dict[tuple[str, str], dict[str, int]] = {}
                for each in Record(workspace).judgements():
                    if each.grade is not None:
                        own = grades.setdefault((each.judge, plain(each.query)), {})
                        own[each.document_id] = each.grade
                held = self._held[workspace] = stamp, grades
        return held[1].get((judge, plain(query)), {})
