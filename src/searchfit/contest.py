"""Several base models in one run: each is fitted in a workspace of its own, all are compared on the questions
that they share, and the best is served.

WORKSPACE/runs/NAME/ is an ordinary workspace, WORKSPACE/models/NAME/ its model; leaderboard.json compares.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from searchfit.compare import Question, Run
from searchfit.config import Settings
from searchfit.errors import SettingsError
from searchfit.pipeline import Fit, Step
from searchfit.significance import compare_by, holm
from searchfit.workspace import FORMAT, Workspace
from searchfit.writing import link_tree, write_json


def run_names(models: Sequence[str]) -> dict[str, str]:
    """A folder name for each model: safe on every file system, distinct, and still to be recognised.

    Raises SettingsError where a model is named twice.
    """
    names: dict[str, str] = {}
    for model in models:
        if model in names:
            raise SettingsError(f"model {model!r} is named twice.")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")[-60:] or "model"
        if name.lower() in (other.lower() for other in names.values()):
            name += "-" + hashlib.blake2b(model.encode(), digest_size=3).hexdigest()
        names[model] = name
    return names


@dataclass(frozen=True, slots=True)
class Contest:
    """A fit of several base models to one corpus. `fit` holds the common settings and the root workspace."""

    fit: Fit
    models: tuple[str, ...]

    def run(self) -> Iterator[tuple[str, Step]]:
        """Fit what is not fitted yet: (model, step) as they end. Raises SearchfitError."""
        root = self.fit.workspace
        root.create()
        with root.lock():
            if not root.manifest_file.exists():
                root.write_manifest({"format": FORMAT, "stages": {}})
            names = run_names(self.models)
            for model, one in self._fits():
                for step in one.run():
                    yield model, step
            if self.fit.until == "report":
                _conclude(root, names, self.fit.settings)

    def plan(self) -> Iterator[tuple[str, Step]]:
        """What `run` would do."""
        for model, one in self._fits():
            for step in one.plan():
                yield model, step

    def _fits(self) -> Iterator[tuple[str, Fit]]:
        root = self.fit.workspace
        for model, name in run_names(self.models).items():
            own = self.fit.settings.model.model_copy(update={"name": model})
            yield (
                model,
                replace(
                    self.fit,
                    workspace=Workspace(root.path / "runs" / name, root.ledger),
                    settings=self.fit.settings.model_copy(update={"model": own}),
                ),
            )


def _conclude(root: Workspace, names: dict[str, str], settings: Settings) -> None:
    """Compare the runs on the questions that all of them have, write leaderboard.json, serve the best."""
    runs = [Run.load(Workspace(root.path / "runs" / name), model, name) for model, name in names.items()]
    common = set(runs[0].questions).intersection(*(run.questions for run in runs[1:]))
    questions = {split: sorted(q for q in common if q[0] == split) for split in ("dev", "test")}
    winner, reason = _winner(runs, questions["dev"], settings)
    rows = [
        {
            "model": run.model,
            "folder": f"runs/{run.name}",
            "engine": run.chosen if tuned else "untuned engine",
            "tuned": tuned,
            **{
                split: round(float(run.scores(asked, tuned).mean()), 6) if asked else None
                for split, asked in questions.items()
            },
            "wins": run is winner and tuned,
        }
        for run in runs
        for tuned in (False, True)
    ]
    rows.sort(key=lambda row: -(row["test"] if isinstance(row["test"], float) else 0.0))
    for run in runs:
        made = Workspace(root.path / "runs" / run.name).artefact("models/tuned")
        link_tree(made, root.path / "models" / run.name)
    served = Workspace(root.path / "runs" / winner.name).served()
    if served is not None:
        index = f"runs/{winner.name}/{served['index']}"
        write_json(root.artefact("engine.json"), {"engine": served["engine"], "index": index})
    board = {
        "metric": "ndcg@10",
        "compared": "whole engines" if winner.judged else "vectors alone",
        "questions": {"kind": "judged" if winner.judged else "generated"}
        | {split: len(asked) for split, asked in questions.items()},
        "winner": winner.model,
        "reason": reason,
        "rows": rows,
    }
    write_json(root.artefact("leaderboard.json"), board)


def _winner(runs: list[Run], dev: list[Question], settings: Settings) -> tuple[Run, str]:
    """The first model, unless another is better for sure on dev; of those, the best mean."""
    first, others = runs[0], runs[1:]
    if not dev:
        return first, f"There are no dev questions in common, so the first model, {first.model}, is served."
    before = first.scores(dev, tuned=True)
    options = settings.choose
    found = [compare_by(settings, before, run.scores(dev, tuned=True)) for run in others]
    corrected = holm([one.p for one in found])
    sure = [
        (one.gain, p, run)
        for one, p, run in zip(found, corrected, others, strict=True)
        if one.gain > 0 and p < options.alpha
    ]
    if not sure:
        return first, f"No other model is better than {first.model} for sure on {len(dev)} dev questions."
    gain, p, best = max(sure, key=lambda row: row[0])
    return (
        best,
        f"{best.model} is better than {first.model} by {gain:.4f} on {len(dev)} dev questions, p = {p:.4f}.",
    )
