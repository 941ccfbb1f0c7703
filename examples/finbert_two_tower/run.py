"""Two FinBERT towers, trained on labelled pairs of a question and a page; a search that answers with urls.

python examples/finbert_two_tower/run.py [--models tiny|builtin|real] [--data CSV] [--out FOLDER]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from models import swaps
from pages import write_labelled
from results import figures
from running import options, searchfit

import searchfit as engine

QUESTIONS = ("what do mortgages cost", "is it safe to put money into gold", "how are my pensions taxed")


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--data", type=Path, help="a table of query, document, label and url of your own")
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    labelled = asked.data or write_labelled(out / "labelled.csv")
    config, workspace = HERE / "config.toml", out / "search"
    with labelled.open(encoding="utf-8", newline="") as file:
        texts = [text for row in csv.DictReader(file) for text in (row["query"], row["document"])]
    stand_ins = swaps(config, asked.models, out / "models", texts)
    searchfit("fit", "--config", config, "--pairs", labelled, *stand_ins, "-o", workspace)
    figures(workspace)
    ws = engine.open(workspace)
    for question in QUESTIONS:
        print(f"\n{question}")
        for hit in ws.search(question, k=5):
            print(f"  {hit.score:.3f}  {hit.metadata['url']}")


if __name__ == "__main__":
    main()
