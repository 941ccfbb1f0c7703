"""A search engine for the properties in a SQL database, from a raw BERT.

python examples/property_listings/run.py [--models tiny|builtin|real] [--data DATABASE] [--out FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from listings import write_listings
from models import swaps
from running import options, searchfit, texts_of

SEARCHES = (
    ("a house with a pool and a garden", "price < 200000 and city = 'Huesca'"),
    ("somewhere warm in winter", "latitude > 42.5 and rooms >= 3"),
)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--data", help="a database of your own: its address, or a SQLite file")
    parser.add_argument("--listings", type=int, default=120, help="how many to invent without --data")
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    source = asked.data or f"sqlite:///{write_listings((out / 'listings.db').resolve(), asked.listings)}"
    config, workspace = HERE / "config.toml", out / "search"
    stand_ins = swaps(config, asked.models, out / "models", texts_of(config, source))
    searchfit("fit", source, "--config", config, *stand_ins, "-o", workspace)
    searchfit("export", workspace, "--pairs", out / "queries", "--format", "passages")
    for question, where in SEARCHES:
        searchfit("search", workspace, question, "--where", where, "-k", "3")


if __name__ == "__main__":
    main()
