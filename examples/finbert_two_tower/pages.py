"""Invented pages about money, each with a url, and questions that were judged against them: labelled.csv."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("query", "document", "label", "url")

THINGS = {
    "government bonds": "coupon maturity treasury yield auction issuer",
    "shares": "dividend ticker exchange shareholder split listing",
    "index funds": "benchmark tracking basket provider rebalancing fee",
    "mortgages": "deposit lender instalment collateral refinancing valuation",
    "credit cards": "limit statement balance cashback issuer surcharge",
    "pensions": "contribution employer annuity allowance retirement payout",
    "call options": "strike premium expiry underlying volatility writer",
    "foreign currencies": "spread parity transfer hedge central-bank quotation",
    "gold": "bullion ounce vault coin assay storage",
    "corporate loans": "covenant borrower syndicate principal default security",
    "savings accounts": "interest withdrawal notice guarantee branch bonus",
    "insurance policies": "premium claim insurer cover deductible beneficiary",
}
MATTERS = {
    "costs": (
        ("what do {0} cost", "fees to expect with {0}", "how expensive are {0} in the long run"),
        "The {1} and the {2} are charged once a year.",
        "Ask for a list of fees before the {3} is agreed, because small charges add up.",
    ),
    "risks": (
        ("what can go wrong with {0}", "are {0} safe", "how much can I lose on {0}"),
        "In a crisis the {1} may fall while the {2} stays where it was.",
        "Nobody should put in money that is needed soon, for the {3} offers no protection from a loss.",
    ),
    "taxes": (
        ("how are {0} taxed", "do I have to declare {0}", "tax rules for {0}"),
        "A gain from the {1} is declared in the year in which the {2} takes place.",
        "The tax office wants to see papers on the {3}, and asks for them years later.",
    ),
    "beginning": (
        ("how do I begin with {0}", "first steps with {0}", "what a beginner should know about {0}"),
        "Begin with a small sum, and learn how the {1} and the {2} hang together.",
        "An adviser explains the {3} in an hour; a good one sells nothing on that day.",
    ),
    "selling": (
        ("how can I get out of {0}", "when to sell {0}", "giving up {0} early"),
        "Leaving early costs a part of the {1}, unless the {2} is over.",
        "Sell in several steps, for the price of the {3} on a single day is luck.",
    ),
    "comparing": (
        ("which {0} are the best", "how to compare {0}", "telling good {0} from bad ones"),
        "Compare the {1} first, then the {2}, and leave out what is advertised most.",
        "Two offers with an equal {3} differ in the small print more than in the price.",
    ),
}
WRONG = 2
"""Pages that do not answer, for each question."""


def write_labelled(path: Path, seed: int = 13) -> Path:
    """A table of (query, document, label, url): each question with the page that answers it and others."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_rows(random.Random(seed)))
    return path


def _rows(rng: random.Random) -> Iterator[tuple[str, str, int, str]]:
    pages = {
        (thing, matter): (_text(rng, thing, matter), _url(thing, matter))
        for thing in THINGS
        for matter in MATTERS
    }
    for (thing, matter), (text, url) in pages.items():
        for question in MATTERS[matter][0]:
            query = question.format(thing)
            yield query, text, 1, url
            for other in rng.sample([page for page in pages.values() if page[1] != url], WRONG):
                yield query, other[0], 0, other[1]


def _text(rng: random.Random, thing: str, matter: str) -> str:
    _, *sentences = MATTERS[matter]
    words = rng.sample(THINGS[thing].split(), 5)
    said = " ".join(sentences).format(thing, *words)
    end = f"With {thing}, look at the {words[3]} and the {words[4]} too."
    return f"{matter.capitalize()} of {thing}. {said} {end}"


def _url(thing: str, matter: str) -> str:
    return f"https://money.example/{thing.replace(' ', '-')}/{matter}"
