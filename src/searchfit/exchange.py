"""What other tools take as it is: the model as a sentence-transformers folder, TREC runs, judgements."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from searchfit.errors import SourceError
from searchfit.export import check_place, files_of, made_folder
from searchfit.feedback import Said, query_id
from searchfit.judged import document_ids, steady_rankings
from searchfit.judgements import Record
from searchfit.judging import Questions, judged_questions
from searchfit.metrics import Qrels, check_field, write_run
from searchfit.records import METADATA_PREFIX, encoded_text
from searchfit.saving import open_new, write_line
from searchfit.screened import artefact
from searchfit.search import open_searcher
from searchfit.workspace import Workspace

_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f]")


def export_model(workspace: Path, folder: Path) -> tuple[str, ...]:
    """Copy the served model into a folder that `SentenceTransformer(folder)` opens with its prompts, routing
    and similarity, its model card (README.md) beside it; the files.

    Raises WorkspaceError for an unfinished workspace, SettingsError like `export_pairs`.
    """
    check_place(folder)
    searcher = open_searcher(workspace)
    with made_folder(folder, {"format": "model"}) as beside:
        shutil.copytree(searcher.folder / "model", beside, dirs_exist_ok=True)
    return files_of(folder)


def export_runs(workspace: Path, folder: Path, asked: Questions) -> tuple[str, ...]:
    """Write a TREC run of each system on the questions, 100 documents a query, and qrels.txt where there are
    judgements; the files. A run's tag is its file's name.

    Raises WorkspaceError for an unfinished workspace, SourceError for an id that TREC files cannot hold,
    SettingsError like `export_pairs`.
    """
    check_place(folder)
    searcher = open_searcher(workspace)
    texts = [text for _, text in asked.queries]
    corpus, rankings = steady_rankings(searcher, Workspace(workspace), texts)
    ids = document_ids(corpus)
    with made_folder(folder, {"format": "runs"}) as beside:
        for name, ranking in rankings:
            tag = re.sub(r"[^a-z0-9.]+", "-", name.partition(" (")[0].lower()).strip("-")
            found = zip(asked.queries, ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
            run = {
                query: [
                    (ids[place], score) for place, score in zip(places, scores, strict=True) if place >= 0
                ]
                for (query, _), places, scores in found
            }
            write_run(beside / f"{tag}.run", tag, run)
        if asked.qrels:
            _write_trec_qrels(beside / "qrels.txt", asked.qrels)
    return files_of(folder)


def export_judgements(
    workspace: Path, folder: Path, asked: Questions, judge: str = "", trec: bool = False
) -> tuple[str, ...]:
    """Write the judged questions and their grades, by everybody or only by one judge; the files.

    As a BEIR folder, with every document as its corpus: `--queries` and `evaluate` take it as it is, with
    qrels/test.tsv, and `fit` takes it as a source. For TREC: qrels.txt and queries.tsv (id TAB question).
    Raises SourceError where nothing is judged or an id cannot be written, SettingsError like `export_pairs`.
    """
    check_place(folder)
    said = [one for one in Record(workspace).judgements() if judge in ("", one.judge)]
    judged = judged_questions(asked, said)
    documents = artefact(workspace, "documents.parquet", "ingest")
    with made_folder(folder, {"format": "trec" if trec else "judgements"}) as beside:
        if trec:
            _write_trec_qrels(beside / "qrels.txt", judged.qrels)
            with open_new(beside / "queries.tsv") as file:
                file.writelines(f"{id_}\t{' '.join(text.split())}\n" for id_, text in judged.queries)
        else:
            _write_beir(beside, documents, judged)
    return files_of(folder)


def export_feedback(workspace: Path, folder: Path, feedback: Iterable[Said]) -> tuple[str, ...]:
    """Write what trains of the feedback as pairs.jsonl, which `--pairs` takes; the files. Documents that are
    no longer there are left out. Raises WorkspaceError for an unfinished workspace, SourceError where nothing
    is left, SettingsError like `export_pairs`.
    """
    check_place(folder)
    wanted = [(one, one.label) for one in feedback if one.label is not None]
    ids = {one.document_id for one, _ in wanted}
    documents = _documents(artefact(workspace, "documents.parquet", "ingest"))
    texts = {row["_id"]: encoded_text(row["title"], row["text"]) for row in documents if row["_id"] in ids}
    if not texts:
        raise SourceError(
            "the feedback makes no pairs yet.", "See what there is: searchfit feedback WORKSPACE"
        )
    with (
        made_folder(folder, {"format": "feedback"}) as beside,
        open_new(beside / "pairs.jsonl") as file,
    ):
        for one, label in wanted:
            if one.document_id in texts:
                pair = {"query": one.query, "passage": texts[one.document_id], "label": label}
                write_line(file, {**pair, "query_id": query_id(one.query), "document_id": one.document_id})
    return files_of(folder)


def _write_trec_qrels(path: Path, qrels: Qrels) -> None:
    with open_new(path) as file:
        for query, grades in qrels.items():
            check_field(query, "query id")
            for document, grade in grades.items():
                check_field(document, "document id")
                file.write(f"{query} 0 {document} {grade}\n")


def _write_beir(folder: Path, documents: Path, judged: Questions) -> None:
    (folder / "qrels").mkdir()
    with open_new(folder / "corpus.jsonl") as file:
        for row in _documents(documents):
            write_line(file, row)
    with open_new(folder / "queries.jsonl") as file:
        for id_, text in judged.queries:
            write_line(file, {"_id": id_, "text": text})
    with open_new(folder / "qrels" / "test.tsv") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, grades in judged.qrels.items():
            for document, grade in grades.items():
                for ident in (query, document):
                    if not ident or ident != ident.strip() or _UNWRITABLE.search(ident):
                        raise SourceError(
                            f"the id {ident[:200]!r} cannot stand in a BEIR qrels file.",
                            "It is empty, or holds control characters or white space at an end.",
                        )
                file.write(f"{query}\t{document}\t{grade}\n")


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of corpus.jsonl, with the user's columns under `metadata`; dates as text."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                own = {
                    name.removeprefix(METADATA_PREFIX): json.loads(json.dumps(value, default=str))
                    for name, value in row.items()
                    if name.startswith(METADATA_PREFIX)
                }
                line = {"_id": row["id"], "title": row["title"], "text": row["text"]}
                yield {**line, "metadata": own} if own else line
