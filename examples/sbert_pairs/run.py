"""Several base models tuned on the same pairs of sentences, each before and after.

python examples/sbert_pairs/run.py [--models tiny|builtin|real] [--model NAME]... [--data CSV] [--out FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from models import chosen, swaps
from pairs import write_pairs
from results import table
from running import options, searchfit

from searchfit.config import ModelSettings, PairsSettings
from searchfit.contest import run_names
from searchfit.encoders import load_encoder
from searchfit.fusion import Floats
from searchfit.sources.pairs import read_pairs

WHO = ("their own, on average", "the next one's, on average")
MODELS = ("bert-base-uncased", "microsoft/mpnet-base")


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--model", action="append", help="a base model; may be repeated")
    parser.add_argument(
        "--data", type=Path, help="a table of source_sentence and target_sentence of your own"
    )
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    data = asked.data or write_pairs(out / "pairs.csv")
    pairs = [(pair.query, pair.text) for pair in read_pairs(PairsSettings(file=str(data)))]
    config, workspace = HERE / "config.toml", out / "search"
    texts = [text for pair in pairs for text in pair]
    wanted = [chosen(name, asked.models, out / "models", texts) for name in asked.model or MODELS]
    named = [word for model in dict.fromkeys(wanted) for word in ("--model", model)]
    stand_ins = swaps(config, asked.models, out / "models", texts)
    searchfit("fit", "--pairs", data, "--config", config, *stand_ins, *named, "-o", workspace)
    names = run_names(list(dict.fromkeys(wanted)))
    for model, name in names.items():
        compare(model, workspace / "models" / (name if len(names) > 1 else "tuned"), pairs)


def compare(model: str, tuned: Path, pairs: list[tuple[str, str]]) -> None:
    """Print the cosine of question and answer, before and after, for some pairs and on average."""
    before, after = (cosines(name, pairs) for name in (model, str(tuned)))
    print(f"\ncosine of question and answer by {model}, and after tuning by {tuned}")
    some = range(0, len(pairs), max(1, len(pairs) // 5))
    rows = [(*map(_cut, pairs[place]), before[0][place], after[0][place]) for place in some]
    means = [
        (f"all {len(pairs)} questions", who, before[n].mean(), after[n].mean()) for n, who in enumerate(WHO)
    ]
    table(
        ("question", "answer", "before", "after"),
        [
            (question, answer, f"{one:.3f}", f"{other:.3f}")
            for question, answer, one, other in (*rows, *means)
        ],
    )


def cosines(model: str, pairs: list[tuple[str, str]]) -> tuple[Floats, Floats]:
    """The cosine of each question and its own answer, and of each question and the next one's answer."""
    encoder = load_encoder(ModelSettings(name=model))
    questions = encoder.encode_queries([question for question, _ in pairs])
    answers = encoder.encode_documents([answer for _, answer in pairs])
    own, next_one = (questions * answers).sum(1), (questions * np.roll(answers, -1, axis=0)).sum(1)
    return own, next_one


def _cut(text: str) -> str:
    return text if len(text) <= 50 else f"{text[:49]}…"


if __name__ == "__main__":
    main()
