"""How far to trust keywords, told without labels: python benchmarks/judge.py FOLDER [FOLDER...] [options]

The judge takes sentences out: from a passage a crop is written, every sentence of the passage that holds the
crop's rarest word is removed, and the crop has to find what is left among all other documents. Words that the
crop copied are then no longer given for free. Prints for each FOLDER, in BEIR layout, whose documents alone
are read until the judged questions are asked:

- r: MRR of keywords alone over MRR of the model alone (vectors and words), sentences taken out, as the stage
  `gauge` of the fit told it;
- regret: nDCG@10 on the judged questions of the best keyword weight tried less that of the weight which is
  the setting's; which the fit took by r; which the crops like best, with sentences taken out and as they are;
- rho: Spearman correlation of nDCG@10 on crops with that on judged questions, over the weights;
- regret with labels: of the best of the weightings that judged questions may choose among (weighing.py) less
  that of the one which 20, 50, 100 or 200 judged questions choose, drawn 200 times; 0 of them is r alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import encode_corpus
from searchfit.fusion import Ranking
from searchfit.interaction import HeldWords, Questions, joined_words, rank_words, word_scores
from searchfit.judged import judged_queries
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.metrics import score_ranking
from searchfit.prior import untuned_engine
from searchfit.records import PASSAGES, Engine, encoded_text
from searchfit.search import ArrayCorpus
from searchfit.trust import Trust
from searchfit.weighing import preferred, weightings
from searchfit.workspace import Workspace

WEIGHTS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
_DEPTH = 100
_LABELS = (20, 50, 100, 200)
_DRAWS = 200
_UNITS = 3  # a passage of fewer sentences leaves too little

Table = Mapping[str, Any]


def main() -> None:
    """Judge, ask and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the workspaces here; what is done is not repeated")
    parser.add_argument("--crops", type=int, default=300, help="documents that sentences are taken out of")
    parser.add_argument("--seed", type=int, default=0, help="which documents these are")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in options.folders:
            workspace = (options.keep or Path(scratch)) / folder.name
            command = [sys.executable, "-m", "searchfit", "fit", str(folder / "corpus.jsonl")]
            subprocess.run([*command, "-o", str(workspace), "--until", "screen"], check=True)
            found.append(judge(Bench(Workspace(workspace)), folder, options))
            show(folder.name, found[-1])
    for name in found[0]["regret"]:
        regrets = [each["regret"][name] for each in found]
        print(f"regret of {name}: mean {np.mean(regrets):.4f}, worst {max(regrets):.4f}")


class Bench:
    """The model and the corpus of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        settings = load_settings(workspace.settings_file)
        self.encoder = load_encoder(settings.model)
        self.corpus = ArrayCorpus.load(workspace.artefact("encoded"), workspace.artefact("keyword"))
        self.trust = Trust.load(workspace.artefact("trust.json"))
        self.prior = untuned_engine(settings.engine, self.corpus.encoding, Trust())
        self.taken = untuned_engine(settings.engine, self.corpus.encoding, self.trust)

    def rank(self, engines: Sequence[Engine], corpus: ArrayCorpus, texts: Sequence[str]) -> list[Ranking]:
        """Rankings (len(texts), 100) of documents by their best passage."""
        vectors, tokens = self.encoder.encode_questions(texts)
        asked = Questions(texts, vectors, word_scores(corpus, corpus.words, texts, tokens))
        return rank_words(engines, corpus, asked, _DEPTH)


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of passages of as many documents: their texts, the passages' rows, and the passages as they are
    without the sentences that hold the crop's rarest word (records.PASSAGES)."""

    texts: list[str]
    rows: np.ndarray
    left: pa.Table


def take_out(bench: Bench, count: int, seed: int) -> Crops:
    """Crops of `count` documents at random, of fewer where fewer have some."""
    pairs = pq.read_table(bench.workspace.artefact("pairs.parquet"), columns=["text", "style", "passage"])
    pairs = pairs.filter(pc.equal(pairs["style"], "crop"))
    passages = pq.read_table(bench.workspace.artefact("passages.parquet"))
    order = np.random.default_rng(seed).permutation(len(pairs))
    texts, rows, left, seen = [], [], [], set()
    for pair in pairs.take(order).to_pylist():
        record = passages.slice(pair["passage"], 1).to_pylist()[0]
        rest = without(pair["text"], record, bench.corpus.keyword)
        if rest is None or record["document"] in seen:
            continue
        seen.add(record["document"])
        texts.append(pair["text"])
        rows.append(pair["passage"])
        left.append(rest)
        if len(texts) == count:
            break
    if not texts:
        sys.exit("No passage has a crop and sentences to spare.")
    return Crops(texts, np.array(rows), pa.Table.from_pylist(left, schema=PASSAGES))


def without(crop: str, record: Table, keyword: KeywordIndex) -> dict[str, Any] | None:
    """A passage without the sentences that hold the crop's rarest word; None where nothing would be left, or
    the passage is short, or has none of the crop's words."""
    ends, text, terms = record["sentences"], record["text"], keyword.analyzer.terms
    sentences = [text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)]
    held = [set(terms(sentence)) for sentence in sentences]
    shared = set(terms(crop)) & set().union(*held)
    if len(sentences) < _UNITS or not shared:
        return None
    rarest = max(sorted(shared), key=keyword.idf)
    kept = [sentence for sentence, words in zip(sentences, held, strict=True) if rarest not in words]
    if not kept:
        return None
    starts = np.cumsum([0, *(len(sentence) + 1 for sentence in kept)]).tolist()
    spans = [place for a, own in zip(starts, kept, strict=False) for place in (a, a + len(own))]
    whole = " ".join(kept)
    return {**record, "text": whole, "sentences": spans, "start": 0, "end": len(whole)}


def altered(bench: Bench, crops: Crops) -> ArrayCorpus:
    """The corpus with what is left of the passages, last and in the order of the crops, in place of their
    documents."""
    old = bench.corpus
    if old.words is None:
        sys.exit("The model has no words to look at.")
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch) / "passages.parquet", Path(scratch) / "encoded"
        pq.write_table(crops.left, file)
        encode_corpus(bench.encoder, file, folder, lambda *_: None, centre=old.words.centre)
        new = ArrayCorpus.load(folder, bench.workspace.artefact("keyword"))
        every = np.arange(new.count)
        rest = np.flatnonzero(~np.isin(old.documents, old.documents[crops.rows]))
        before, after = old.take(rest), new.take(every)
        parts = [old.words.take(rest), new.words.take(every)]  # type: ignore[union-attr]
        words = joined_words([own for part in parts for own in np.split(part.bits, part.offsets[1:-1])])
    table = pq.read_table(bench.workspace.artefact("passages.parquet"), columns=["title", "text"])
    whole = pa.concat_tables([table.take(rest), crops.left.select(["title", "text"])])
    texts = map(encoded_text, whole["title"].to_pylist(), whole["text"].to_pylist())
    keyword = KeywordIndex.build(
        texts, Analyzer(old.keyword.analyzer.language), old.keyword.k1, old.keyword.b
    )
    return ArrayCorpus(
        np.concatenate([before.passages, after.passages]),
        np.concatenate([before.sentences, after.sentences]),
        np.concatenate([before.offsets, before.offsets[-1] + after.offsets[1:]]),
        np.concatenate([before.documents, old.documents.max() + 1 + every]).astype(np.int32),
        keyword,
        old.encoding,
        HeldWords(words, old.words.centre),
    )


def judge(bench: Bench, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one corpus."""
    prior, corpus = bench.prior, bench.corpus
    crops = take_out(bench, options.crops, options.seed)
    cut = altered(bench, crops)
    path = [weighted(prior, weight) for weight in WEIGHTS]
    ranked = bench.rank(path, cut, crops.texts)
    own = cut.documents[-len(crops.texts) :]
    rule = bench.taken.keyword_weight
    taken = [gain(cut, ranking, own) for ranking in ranked]
    as_is = [
        gain(corpus, ranking, corpus.documents[crops.rows])
        for ranking in bench.rank(path, corpus, crops.texts)
    ]
    real = asked(bench, folder, [*WEIGHTS, prior.keyword_weight, rule])
    shown = real[: len(WEIGHTS)]
    picked = {
        f"the setting, {prior.keyword_weight:g}": real[-2],
        "r": real[-1],
        "crops, sentences taken out": shown[int(np.argmax(taken))],
        "crops as they are": shown[int(np.argmax(as_is))],
    }
    rho = {
        "sentences taken out": spearmanr(taken, shown).statistic,
        "as they are": spearmanr(as_is, shown).statistic,
    }
    return {
        "trust": bench.trust,
        "weight": rule,
        "crops": len(crops.texts),
        "real": dict(zip(WEIGHTS, shown, strict=True)),
        "regret": {name: max(real) - value for name, value in picked.items()},
        "rho": {name: float(value) for name, value in rho.items()},
        "labels": with_labels(bench, folder, options.seed),
    }


def weighted(engine: Engine, weight: float) -> Engine:
    """The engine with this keyword weight."""
    return replace(engine, name=f"weight {weight:g}", keyword_weight=weight)


def reciprocal(corpus: ArrayCorpus, ranking: Ranking, own: np.ndarray) -> np.ndarray:
    """(q) one over the rank of each question's own document, 0 where it is not among the first 100."""
    there = np.where(ranking.rows >= 0, corpus.documents[np.maximum(ranking.rows, 0)], -1) == own[:, None]
    return np.where(there.any(axis=1), 1 / (there.argmax(axis=1) + 1), 0.0)


def gain(corpus: ArrayCorpus, ranking: Ranking, own: np.ndarray) -> float:
    """nDCG@10 where each question's own document is all that answers it."""
    found = reciprocal(corpus, ranking, own)
    ranks = 1 / np.maximum(found, 1 / (2 * _DEPTH))
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean())


def asked(bench: Bench, folder: Path, weights: Sequence[float]) -> list[float]:
    """nDCG@10 on the judged questions by keyword weight."""
    judged, queries = judged_queries(folder, "test")
    engines = [weighted(bench.prior, weight) for weight in dict.fromkeys(weights)]
    rankings = bench.rank(engines, bench.corpus, list(queries.values()))
    found = {
        engine.keyword_weight: float(scored(bench, ranking, queries, judged.qrels).mean())
        for engine, ranking in zip(engines, rankings, strict=True)
    }
    return [found[weight] for weight in weights]


def scored(bench: Bench, ranking: Ranking, queries: Mapping[str, str], qrels: Table) -> np.ndarray:
    """(q) nDCG@10 of each judged question."""
    names = pq.read_table(bench.workspace.artefact("documents.parquet"), columns=["id"])["id"].to_pylist()
    documents = bench.corpus.documents[np.maximum(ranking.rows, 0)].tolist()
    found = []
    for id_, own, rows in zip(queries, documents, ranking.rows.tolist(), strict=True):
        ids = [names[number] for number, row in zip(own, rows, strict=True) if row >= 0]
        found.append(score_ranking(ids, qrels[id_], ("ndcg@10",))["ndcg@10"])
    return np.array(found)


def with_labels(bench: Bench, folder: Path, seed: int) -> dict[int, float]:
    """Mean regret by how many judged questions chose the weights, 0 for the weights without any. What they
    chose is measured on all."""
    judged, queries = judged_queries(folder, "test")
    engines = weightings(bench.taken)
    ranked = bench.rank(engines, bench.corpus, list(queries.values()))
    scores = np.stack([scored(bench, ranking, queries, judged.qrels) for ranking in ranked])
    means_, random = scores.mean(axis=1), np.random.default_rng(seed)
    regret = {0: float(means_.max() - means_[0])}
    for count in (n for n in _LABELS if n <= 0.7 * len(queries)):
        drawn = [random.permutation(len(queries))[:count] for _ in range(_DRAWS)]
        taken = [engines.index(preferred(engines, scores[:, some])) for some in drawn]
        regret[count] = float(means_.max() - means_[taken].mean())
    return regret


def show(name: str, told: Mapping[str, Any]) -> None:
    """Print one corpus."""
    trust: Trust = told["trust"]
    print(f"\n{name}: MRR of keywords {trust.keyword:.3f}, of the model {trust.model:.3f}")
    print(f"r = {trust.keyword / max(trust.model, 1e-9):.2f}: weight {told['weight']:.2f}")
    print(f"{told['crops']} crops are asked besides")
    print("judged nDCG@10 by weight: " + ", ".join(f"{w:g}: {v:.4f}" for w, v in told["real"].items()))
    for kind in ("regret", "rho"):
        print(f"{kind}: " + ", ".join(f"{name}: {value:.4f}" for name, value in told[kind].items()))
    print("regret with labels: " + ", ".join(f"{n}: {value:.4f}" for n, value in told["labels"].items()))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
