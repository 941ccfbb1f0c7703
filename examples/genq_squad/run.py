"""Questions by a T5, a model tuned on them, and its index in a vector database.

python examples/genq_squad/run.py [--models tiny|builtin|real] [--data BEIR] [--store ADDRESS] [--out FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from models import swaps
from results import figures
from running import options, searchfit, texts_of

DOCSTRINGS = "pydoc:argparse,base64,bisect,calendar,csv,glob,hashlib,heapq,json,pathlib,shutil,textwrap"


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument(
        "--data", help="passages, with questions that measure, as a BEIR folder; default: docstrings"
    )
    parser.add_argument(
        "--store", help="where the index goes, pinecone://NAME say; default: Qdrant, embedded"
    )
    parser.add_argument("--question", default="", help="what to search for")
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    source = asked.data or DOCSTRINGS
    config, workspace = HERE / "config.toml", out / "search"
    stand_ins = swaps(config, asked.models, out / "models", texts_of(config, source))
    judged = ["--queries", asked.data] if asked.data else []
    searchfit("fit", source, *judged, "--config", config, *stand_ins, "-o", workspace)
    figures(workspace)
    searchfit("export", workspace, "--pairs", out / "queries", "--format", "tsv")
    store = asked.store or f"qdrant://{(out / 'qdrant').resolve()}?collection=passages"
    searchfit("index", workspace, "--store", store, "--batch", "32", "--replace")
    question = asked.question or ("when did the war end" if asked.data else "find files by a pattern")
    searchfit("search", workspace, question, "-k", "5")


if __name__ == "__main__":
    main()
