"""The pipeline runs the stages of the recipe whose work is not done yet.

A stage is done when the manifest holds its key: a hash of its settings, of the content of the artefacts it
reads, of what it depends on outside the workspace, and of its version. A killed fit carries on with the
stage that did not end, and within it with the parts that were finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from searchfit.config import Settings, to_toml
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.executors import Executor, load_executor
from searchfit.growth import left_behind
from searchfit.layout import GROWN
from searchfit.recipe import STAGES, Stage
from searchfit.records import StageResult
from searchfit.stages import Progress, Tools, silent
from searchfit.training.crew import Task, tasks, together
from searchfit.workspace import FORMAT, Workspace
from searchfit.writing import digest, size, write_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """What `fit` did, or would do, with a stage: `why` is empty when there was nothing to do."""

    stage: str
    why: str
    seconds: float = 0.0
    result: StageResult | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """A fit of a workspace: its settings, which stages to run again and up to which, and whom to tell."""

    workspace: Workspace
    settings: Settings
    force: frozenset[str] = frozenset()
    until: str = "report"
    progress: Progress = silent
    command: str = ""

    def run(self) -> Iterator[Step]:
        """Run what is not done, stage by stage. Raises SearchfitError; what was finished stays finished."""
        self._check()
        self.workspace.create()
        with self.workspace.lock(), contextlib.closing(load_executor(self.settings.executor)) as executor:
            write_bytes(self.workspace.settings_file, to_toml(self.settings).encode())
            for stage in self._stages():
                manifest = self.workspace.manifest()
                key, why = self._due(stage, manifest)
                yield self._run(stage, key, why, executor) if why else Step(stage.name, "")
            if self.until == STAGES[-1].name:  # else a later stage may have work to carry on
                self._tidy()

    def plan(self) -> Iterator[Step]:
        """What `run` would do. Stages after one that would run are due when its artefacts change."""
        self._check()
        self.workspace.check()
        manifest = self.workspace.manifest()
        waiting: set[str] = set()
        for stage in self._stages():
            if waiting & set(stage.reads):
                why = "what it reads would be made anew"
            else:
                _, why = self._due(stage, manifest)
            if why:
                waiting |= {*stage.writes, "manifest.json"}
            yield Step(stage.name, why)

    def _check(self) -> None:
        """Raise for what would stop the fit later: a wrong name, or a source, a model or questions that are
        not there."""
        names = [stage.name for stage in STAGES]
        for name in (*self.force, self.until):
            if name not in names:
                raise SettingsError(f"there is no stage {name!r}.", f"The stages are: {', '.join(names)}.")
        for outside in {stage.outside for stage in self._stages() if stage.outside}:
            outside(self.settings)

    def _stages(self) -> Iterator[Stage]:
        for stage in STAGES:
            yield stage
            if stage.name == self.until:
                return

    def _due(self, stage: Stage, manifest: Mapping[str, Any]) -> tuple[str, str]:
        """The stage's key, and why it has to run; "" when it has not."""
        parts = self._parts(stage, manifest)
        key = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
        entry = manifest["stages"].get(stage.name)
        if entry is None:
            return key, "not done yet"
        if stage.name in self.force:
            return key, "forced"
        if entry["key"] != key:
            changed = [name for name, part in parts.items() if entry["parts"].get(name) != part]
            return key, "changed: " + ", ".join(changed)
        unmade = [name for name in stage.writes if "{key}" not in name and name not in entry["artefacts"]]
        if unmade:
            return key, f"makes {unmade[0]} too"
        for name, made in entry["artefacts"].items():
            if self.workspace.size_of(name) != made["bytes"]:
                return key, f"{name} is missing or damaged"
        return key, ""

    def _parts(self, stage: Stage, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """What the stage's key is made of, by name."""
        settings = self.settings.only(*stage.sections)
        parts: dict[str, Any] = {"version": stage.module.VERSION}
        for section in stage.sections:
            value = getattr(settings, section)
            parts[f"settings {section}"] = value if isinstance(value, int) else value.model_dump(mode="json")
        made = {
            name: artefact["digest"]
            for entry in manifest["stages"].values()
            for name, artefact in entry["artefacts"].items()
        }
        for name in stage.reads:
            parts[name] = _story(manifest) if name == "manifest.json" else made.get(name, "absent")
        if stage.outside:
            # Through JSON, so that it compares equal with what the manifest holds.
            parts["outside"] = json.loads(json.dumps(stage.outside(self.settings)))
        return parts

    def _run(self, stage: Stage, key: str, why: str, executor: Executor) -> Step:
        folder = self._partial(stage, key)
        inputs = {name: self.workspace.artefact(name) for name in stage.reads}
        _reset_peak_memory()
        started = time.perf_counter()
        version_ = self._version(stage, key)
        forced, cache = stage.name in self.force, self.workspace.cache
        tools = Tools(folder, version_, self.progress, self.workspace.ledger, forced, cache, executor)
        task = Task(stage.name, self.settings, inputs)
        served = self._served() if "engine.json" in stage.writes else ""
        with together(task) if stage.trains else contextlib.nullcontext():
            result: StageResult = stage.module.run(self.settings.only(*stage.sections), inputs, tools)
        executor.release()  # the next stage has other models
        seconds = time.perf_counter() - started
        if served:  # before the new index takes the place of the old, so that no kill loses what was added
            result = replace(result, notes=(*result.notes, *left_behind(self.workspace, served)))
        self._publish(stage, key, version_, result, seconds)
        return Step(stage.name, why, seconds, result)

    def _partial(self, stage: Stage, key: str) -> Path:
        """The stage's own folder, with what an interrupted run with the same key left in it."""
        folder = self.workspace.partial(stage.name)
        mark = folder / "key"
        if not mark.exists() or mark.read_text(encoding="ascii") != key:
            shutil.rmtree(folder, ignore_errors=True)
            write_bytes(mark, key.encode())
        return folder

    def _version(self, stage: Stage, key: str) -> str:
        """The version of this run: the key's beginning, numbered where that has been made before, for a
        reader may have it open."""
        versioned = [name for name in stage.writes if "{key}" in name]
        for number in itertools.count(1):
            name = key[:12] if number == 1 else f"{key[:12]}-{number}"
            if all(self.workspace.size_of(place.format(key=name)) < 0 for place in versioned):
                break
        return name

    def _publish(self, stage: Stage, key: str, version_: str, result: StageResult, seconds: float) -> None:
        """Move the artefacts to their places, then vouch for them in the manifest."""
        manifest = self.workspace.manifest()
        parts = self._parts(stage, manifest)
        names = stage.names(version_)
        partial = self.workspace.partial(stage.name)
        artefacts = {
            name: {"bytes": size(partial / name), "digest": digest(partial / name)} for name in names
        }
        if manifest["stages"].pop(stage.name, None) is not None:
            self.workspace.write_manifest(manifest)
        for name in names:
            self.workspace.publish(stage.name, name)
        manifest["stages"][stage.name] = {
            "key": key,
            "version": stage.module.VERSION,
            "parts": parts,
            "seconds": round(seconds, 2),
            "peak_memory_mb": _peak_memory_mb(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **asdict(result),
            "artefacts": artefacts,
        }
        manifest |= self._header()
        manifest["stages"] = {
            s.name: manifest["stages"][s.name] for s in STAGES if s.name in manifest["stages"]
        }
        self.workspace.write_manifest(manifest)
        shutil.rmtree(partial, ignore_errors=True)
        self.workspace.share()

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "searchfit": _version_of("searchfit"),
            "command": self.command,
            "seed": self.settings.seed,
            "settings_toml": to_toml(self.settings),
            "versions": {
                "python": platform.python_version(),
                **{name: _version_of(name) for name in _NAMED},
            },
        }

    def _served(self) -> str:
        """The index that is served; "" where there is none, or nobody can tell."""
        try:
            return str((self.workspace.served() or {"index": ""})["index"])
        except WorkspaceError:
            return ""

    def _tidy(self) -> None:
        """Remove index versions that nobody can be reading: all but the served one and the one before."""
        served = self._served()
        for old in [name for name in self.workspace.versions() if name != served][:-1]:
            self.workspace.remove(old)
            self.workspace.remove(old + GROWN)
        shutil.rmtree(self.workspace.path / ".partial", ignore_errors=True)


def assist() -> None:
    """Take part in the stages that train, in a process that is not the first of its crew, until the first one
    has ended. Raises what the stages raise."""
    for task in tasks():
        stage = next(stage for stage in STAGES if stage.name == task.stage)
        with together(task), tempfile.TemporaryDirectory(prefix="searchfit-") as scratch:
            stage.module.run(task.settings.only(*stage.sections), task.inputs, Tools(Path(scratch)))


def _story(manifest: Mapping[str, Any]) -> str:
    """A hash of what the report tells of the other stages."""
    stages = {name: entry for name, entry in manifest["stages"].items() if name != "report"}
    return hashlib.blake2b(json.dumps(stages, sort_keys=True).encode(), digest_size=16).hexdigest()


_NAMED = ("torch", "transformers", "sentence-transformers", "lancedb", "pyarrow", "numpy")
"""The packages whose versions the manifest names."""


@cache
def _version_of(package: str) -> str:
    """Of an installed package; read once, not after each stage."""
    return version(package)


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # not Linux: the peak is then the process's so far


def _peak_memory_mb() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss >> 20)
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) >> 10 if found else 0
