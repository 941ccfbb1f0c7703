"""What the tests of whole fits share: small corpora, small settings, a tiny model, and the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from searchfit.cli import main
from searchfit.config import Settings, load_settings
from searchfit.encoders.device import tune_process
from searchfit.pipeline import Fit, Step
from searchfit.workspace import Workspace

EXAMPLES = Path(__file__).parents[1] / "examples"

SMALL = {
    "generate.max_queries": 150,
    "train.min_queries": 20,
    "train.epochs": 1,
    "train.learning_rate": 1e-3,
    "choose.permutations": 200,
    "choose.bootstrap": 200,
}
"""Settings of a fit that takes seconds."""

CUT = {"split__max_chars": 80, "split__overlap_chars": 0}
"""Settings that cut the documents of `write_corpus` into several passages."""


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def killed_at_a_rename(patch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From here on renames are counted; what comes back says which one from now on is struck."""
    rename, left = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        rename(source, target)

    def strike(number: int) -> None:
        nonlocal left
        left = number

    patch.setattr(os, "replace", replace)
    return strike


@dataclass(frozen=True, slots=True)
class Corpus:
    """A source and the model to fit to it."""

    source: Path
    model: str = "minilm"


_PLACES = ("lighthouse", "bakery", "quarry", "orchard", "harbour", "library", "observatory", "tannery")
_TRAITS = {
    "granite": "Its walls are of grey granite that masons cut by hand two centuries ago.",
    "flooded": "Every spring the river rises and the ground floor is flooded for a week.",
    "haunted": "People of the village say that a captain without a head walks there at night.",
    "painted": "A painter from the capital covered the ceiling with birds and comets.",
    "abandoned": "Nobody has lived or worked in it since the railway was closed.",
    "windy": "The wind from the north blows so hard that the doors open to the south only.",
    "famous": "Visitors come from far away to take photographs and buy postcards.",
}


def write_corpus(path: Path) -> Path:
    """56 documents of two or three sentences, as CSV with a price, a number of rooms and a town."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "name", "body", "price", "rooms", "town"])
        for i, (trait, place) in enumerate((t, p) for t in _TRAITS for p in _PLACES):
            text = f"The {trait} {place} stands above the bay of {place[:4]}{trait[:3]}. {_TRAITS[trait]}"
            if i % 3 == 0:
                text += f" The owner of the {place} asks {1000 + 13 * i} coins for it, boats not included."
            town = ("Ciutadella", "Es Castell")[i % 2]
            rows.writerow([f"doc-{i}", f"{trait} {place}", text, 1000 + 13 * i, i % 7, town])
    return path


def settings(corpus: Corpus, **changes: Any) -> Settings:
    """SMALL settings for a corpus; in the names of changes, two underscores stand for the dot."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    named = {"source.source": str(corpus.source), "model.name": corpus.model}
    return load_settings(values={**named, **SMALL, **dotted})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For tiny models: several threads would only wait for one another, on a busy machine for long."""
    import torch

    tune_process()  # once, before; it sets the number of threads itself
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    path: Path, corpus: Corpus, *, force: Iterable[str] = (), until: str = "report", **changes: Any
) -> list[Step]:
    """Fit in this process; what was done, stage by stage."""
    with one_thread():
        return list(Fit(Workspace(path), settings(corpus, **changes), frozenset(force), until).run())


def ran(steps: Iterable[Step]) -> list[str]:
    """The stages that ran."""
    return [step.stage for step in steps if step.why]


def options(corpus: Corpus, **changes: Any) -> list[str]:
    """The source, SMALL settings and changes, as arguments of the command line."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    dotted = {"model.name": corpus.model, **SMALL, **changed}
    sets = [part for key, value in dotted.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [str(corpus.source), *sets]


def environment() -> dict[str, str]:
    """The environment of child processes: one thread, so that tests do not fight over the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def cli(*arguments: object) -> Done:
    """Run the command line in this process, where the heavy libraries are loaded but once. An error that it
    does not turn into a message is raised."""
    return _done(main, "searchfit", *arguments)


def example(name: str, *arguments: object) -> str:
    """What a worked example prints, run in this process."""
    loaded = set(sys.modules)
    script = EXAMPLES / name / "run.py"
    with mock.patch.object(sys, "path", [str(script.parent), *sys.path]):
        done = _done(lambda: runpy.run_path(str(script), run_name="__main__"), script, *arguments)
    for module in set(sys.modules) - loaded:  # each example has its own
        if EXAMPLES in Path(getattr(sys.modules[module], "__file__", None) or "").parents:
            del sys.modules[module]
    assert done.returncode == 0, done.stderr
    return done.stdout


def _done(work: Callable[[], object], *argv: object) -> Done:
    """What a program does in this process."""
    out, errors = io.StringIO(), io.StringIO()
    status: object = 0
    with (
        one_thread(),
        mock.patch.object(sys, "argv", [str(part) for part in argv]),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            work()
        except SystemExit as end:
            status = end.code or 0
    assert isinstance(status, int)
    return Done(status, out.getvalue(), errors.getvalue())


def children_seconds() -> float:
    """Processor time of the processes that have ended: a busy machine does not lengthen it."""
    spent = os.times()
    return spent.children_user + spent.children_system


def command(*arguments: object) -> Done:
    """Run `python -m searchfit` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "searchfit", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        timeout=3600,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


_PIECES = 4000
"""Of the built-in model's 30,522 word pieces, which are read each time that a model is opened."""


def tiny_model(folder: Path) -> Path:
    """An embedding model with the commonest word pieces of the built-in one and random weights: fast, and as
    good as any where the quality of vectors does not matter."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    from searchfit.encoders import locate

    torch.manual_seed(0)
    plain = folder / "plain"
    shape = BertConfig(
        vocab_size=_PIECES,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
    )
    BertModel(shape).save_pretrained(plain)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(locate("minilm") / name, plain / name)
    tokenizer = json.loads((locate("minilm") / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {piece: id_ for piece, id_ in pieces.items() if id_ < _PIECES}
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    transformer = Transformer(str(plain), max_seq_length=256)
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


def random_sentences(seed: int) -> Iterator[str]:
    """Endless sentences of 8 to 15 made-up words, most words rare."""
    random = np.random.default_rng(seed)
    syllables = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    while True:
        words = random.integers(0, len(syllables), (int(random.integers(8, 16)), 3))
        yield " ".join("".join(syllables[i] for i in word) for word in words).capitalize() + "."
