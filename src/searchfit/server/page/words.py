"""Which words of a query are worth marking in a text."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from searchfit.snippets import merged_spans

if TYPE_CHECKING:
    from searchfit.stores.corpus import StoreCorpus

COMMON = 0.6
"""A word that stands in more than this share of the passages tells nothing, and is not marked."""


def telling(corpus: StoreCorpus, query: str) -> Set[str]:
    """The query's terms that tell passages apart; all of them where none does."""
    terms = sorted(set(corpus.analyzer.terms(query)))
    found = corpus.store.postings(terms)
    most = COMMON * corpus.count
    return {term for term in terms if term not in found or len(found[term][0]) <= most} or set(terms)


def spans(corpus: StoreCorpus, text: str, terms: Set[str]) -> tuple[tuple[int, int], ...]:
    """Where the terms stand in a text, as (start, end) in order."""
    return merged_spans([(a, b) for term, a, b in corpus.analyzer.spans(text) if term in terms])
