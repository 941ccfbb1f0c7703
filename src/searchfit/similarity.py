"""Do similarities agree with labels? For labelled pairs of texts: correlation with grades, and how well one
threshold parts what answers from what does not."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchfit.writing import write_bytes

Values = npt.NDArray[np.float64]


def score_pairs(similarities: npt.ArrayLike, labels: npt.ArrayLike, answers: float = 0.5) -> dict[str, float]:
    """Figures of n pairs with similarities (n) and labels (n), 0 to 1 or graded.

    `spearman` and `pearson`: the correlations of both (Spearman with mean ranks for ties). `accuracy` and
    `accuracy_threshold`: the best share of pairs told right by "a similarity of at least the threshold
    answers", where labels from `answers` on do answer; `f1`, `precision`, `recall` and `f1_threshold` at the
    threshold of the best F1. `average_precision`: of the pairs ranked by similarity, equal ones as one step.
    NaN for what the labels cannot tell, as where all are alike. Raises ValueError for shapes that do not fit
    or values that are not finite.
    """
    scores, grades = np.asarray(similarities, np.float64), np.asarray(labels, np.float64)
    if scores.ndim != 1 or scores.shape != grades.shape:
        raise ValueError(
            f"similarities {scores.shape} and labels {grades.shape} have to be of the same pairs"
        )
    if not (np.isfinite(scores).all() and np.isfinite(grades).all()):
        raise ValueError("a similarity or a label is not finite")
    found = {
        "pearson": _correlation(scores, grades),
        "spearman": _correlation(_ranks(scores), _ranks(grades)),
    }
    return found | _thresholds(scores, grades >= answers)


def _correlation(a: Values, b: Values) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Values) -> Values:
    """Ranks from 1, equal values with their mean rank."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Values = (last - (counts - 1) / 2)[number]
    return mean


def _thresholds(scores: Values, right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """The figures at the best thresholds, which lie half-way between two similarities that differ."""
    names = ("accuracy", "accuracy_threshold", "f1", "f1_threshold", "precision", "recall")
    total = int(right.sum())
    if not 0 < total < len(right):
        return dict.fromkeys((*names, "average_precision"), float("nan"))
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(right[order])
    cuts = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last pair above each threshold
    below = np.append(ordered[1:], ordered[-1])[cuts]
    places, found, border = cuts + 1, hits[cuts], (ordered[cuts] + below) / 2
    precision, recall = found / places, found / total
    accuracy = (found + (len(right) - total) - (places - found)) / len(right)
    f1 = 2 * found / (places + total)
    # One more threshold is above all similarities: then nothing answers.
    nothing = (len(right) - total) / len(right)
    best, even = int(np.argmax(f1)), int(np.argmax(accuracy))
    steps = np.diff(recall, prepend=0.0)
    values = (
        max(nothing, float(accuracy[even])),
        float(border[even]) if accuracy[even] >= nothing else float(np.nextafter(ordered[0], np.inf)),
        *(float(row[best]) for row in (f1, border, precision, recall)),
    )
    return dict(zip(names, values, strict=True)) | {"average_precision": float((steps * precision).sum())}


def log_scores(path: Path, place: Mapping[str, float], scores: Mapping[str, float]) -> None:
    """Append a row to a CSV file: where training is (epoch, step) and the scores then, NaN left empty.

    A row of the same place is replaced, and those after it are dropped: a killed run that is carried on from
    an earlier step writes them anew. The file is whole at any moment.
    """
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []
    kept = [row for row in rows if float(row["step"]) < place["step"]]
    now = {name: "" if np.isnan(value) else f"{value:.6g}" for name, value in {**place, **scores}.items()}
    out = io.StringIO()
    writer = csv.DictWriter(out, list(now), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, now])
    write_bytes(path, out.getvalue().encode())
