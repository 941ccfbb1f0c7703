"""Question by question: the largest gains and losses, the hardest and the easiest questions, each with what
was found before and after, the right answer's rank and the likely cause; and what all questions have in
common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from searchfit.encoders import Tokenizer
from searchfit.reporting.causes import Case, Cause, likely_cause, likely_help
from searchfit.reporting.evidence import Evidence
from searchfit.reporting.library import Library, Words
from searchfit.screening import Sibling, is_foreign
from searchfit.text import word_count

EACH, SHOWN, UNJUDGED = 8, 5, 20
_QUERY_CHARS = 2000
LOW = 0.5  # nDCG@10 below which a question counts as hard

Traits = dict[str, list[Any]]


def traits(evidence: Evidence, library: Library) -> Traits:
    """By test question: style, words, the share of its content words in the right passage, words of the right
    document, and the gain; empty without a pair of systems to compare."""
    if not evidence.pair:
        return {}
    before, after = (evidence.scores(name) for name in evidence.pair)
    columns = {name: evidence.queries[name].to_pylist() for name in ("text", "style", "relevant")}
    found: Traits = {"style": [], "words": [], "overlap": [], "document_words": [], "gain": []}
    for row in evidence.test.tolist():
        right = [library.row_of[ident] for ident in columns["relevant"][row] if ident in library.row_of]
        rows = library.passages(right)
        if not len(rows) or not np.isfinite(after[row] - before[row]):
            continue
        found["style"].append(columns["style"][row] or "-")
        found["words"].append(word_count(columns["text"][row]))
        found["overlap"].append(library.words(columns["text"][row], rows).shared)
        found["document_words"].append(library.document_words(right[0]))
        found["gain"].append(float(after[row] - before[row]))
    return found


def examples(evidence: Evidence, library: Library, tokenizer: Tokenizer) -> dict[str, Any]:
    """Cards by kind: gains, losses, hardest, easiest (of the pair of systems that is compared) and the user's
    own questions without judgements (the untuned and the chosen system)."""
    cards = {
        kind: [_card(evidence, library, row) for row in rows] for kind, rows in _picked(evidence).items()
    }
    shown = [
        (card, likely_help if kind == "easiest" else likely_cause) for kind in cards for card in cards[kind]
    ]
    _state_causes(shown, library, tokenizer)
    cards["yours"] = [
        {"query": text[:_QUERY_CHARS], **_found(evidence, library, len(evidence.queries) + number, [])}
        for number, text in enumerate((evidence.systems.get("unjudged") or [])[:UNJUDGED])
    ]
    return cards


def _picked(evidence: Evidence) -> dict[str, list[int]]:
    if not evidence.pair:
        return {"gains": [], "losses": [], "hardest": [], "easiest": []}
    before, after = (evidence.scores(name) for name in evidence.pair)
    rows = [row for row in evidence.test.tolist() if np.isfinite(after[row] - before[row])]
    gain = {row: after[row] - before[row] for row in rows}
    gains = sorted((row for row in rows if gain[row] > 0), key=lambda row: -gain[row])[:EACH]
    losses = sorted((row for row in rows if gain[row] < 0), key=lambda row: gain[row])[:EACH]
    hard = [row for row in rows if after[row] < LOW and row not in losses]
    easy = [row for row in rows if after[row] >= LOW and row not in gains]
    return {
        "gains": gains,
        "losses": losses,
        "hardest": sorted(hard, key=lambda row: (after[row], before[row]))[:EACH],
        "easiest": sorted(easy, key=lambda row: (-after[row], -before[row]))[:EACH],
    }


def _card(evidence: Evidence, library: Library, row: int) -> dict[str, Any]:
    first, second = evidence.pair or ("", "")
    query = evidence.queries.slice(row, 1).to_pylist()[0]
    relevant = [library.row_of[ident] for ident in query["relevant"] if ident in library.row_of]
    return {
        "query": query["text"][:_QUERY_CHARS],
        "style": query["style"],
        "before": float(evidence.scores(first)[row]),
        "after": float(evidence.scores(second)[row]),
        "rank_before": _rank(evidence, first, row),
        "rank_after": _rank(evidence, second, row),
        "relevant": [library.named(document) for document in relevant[:SHOWN]],
        **_found(evidence, library, row, relevant),
        "_relevant": relevant,
    }


def _rank(evidence: Evidence, system: str, row: int) -> int | None:
    """The place of the first right document among those ranked; None when none was found."""
    places = evidence.places[system][row].as_py()
    return min(places) if places else None


def _found(evidence: Evidence, library: Library, row: int, relevant: list[int]) -> dict[str, Any]:
    judged = row < len(evidence.queries)
    names = (evidence.pair if judged else None) or (evidence.untuned, evidence.chosen)
    lists = {}
    for side, name in zip(("top_before", "top_after"), names, strict=True):
        rows = [i for i in evidence.top[name][row].as_py()[:SHOWN] if i >= 0]
        lists[side] = [{**library.named(i), "relevant": i in relevant, "_row": i} for i in rows]
    return lists


def _state_causes(
    cards: Sequence[tuple[dict[str, Any], Callable[[Case], Cause]]], library: Library, tokenizer: Tokenizer
) -> None:
    """Add the likely cause to each card, by the rules that come with it: of the score before, for a gain,
    else of the score after."""
    pairs = [_right_and_wrong(card, library) for card, _ in cards]
    texts = library.texts([words.row for pair in pairs for words in pair if words])
    usual = float(np.median(library.corpus.keyword.lengths)) if library.corpus.count else 0.0
    for (card, rules), (right, wrong) in zip(cards, pairs, strict=True):
        if right is None:
            card["cause"], card["why"] = "unclear", "No right passage is in the corpus."
        else:
            case = _case(card["query"], library, (right, wrong), texts, tokenizer, usual)
            cause = rules(case)
            card["cause"], card["why"] = cause.name, cause.why
        for hit in (*card["top_before"], *card["top_after"]):
            del hit["_row"]
        del card["_relevant"]


def _right_and_wrong(card: dict[str, Any], library: Library) -> tuple[Words | None, Words | None]:
    side = "top_before" if card["after"] > card["before"] else "top_after"
    wrong = [hit["_row"] for hit in card[side] if not hit["relevant"]][:1]

    def words(documents: Iterable[int]) -> Words | None:
        rows = library.passages(list(documents))
        return library.words(card["query"], rows) if len(rows) else None

    return words(card["_relevant"]), words(wrong)


def _case(
    query: str,
    library: Library,
    pair: tuple[Words, Words | None],
    texts: dict[int, str],
    tokenizer: Tokenizer,
    usual: float,
) -> Case:
    right, wrong = pair
    text = texts[right.row]
    analyzer = library.corpus.keyword.analyzer
    return Case(
        terms=right.terms,
        shared=right.shared if right.terms else 1.0,
        shared_wrong=wrong.shared if wrong and wrong.terms else 0.0,
        holders=library.holders(query),
        twin=_cosine(library, right.row, wrong.row) if wrong else 0.0,
        words=int(library.corpus.keyword.lengths[right.row]),
        usual=usual,
        tokens=int(tokenizer.count([text])[0]),
        window=tokenizer.max_tokens,
        foreign=is_foreign(query, Sibling(text, analyzer)),
    )


def _cosine(library: Library, one: int, other: int) -> float:
    a, b = (np.asarray(library.corpus.passages[row], np.float64) for row in (one, other))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
