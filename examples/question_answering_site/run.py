"""Tune a model on the questions and accepted answers of a site, and see what it brings.

python examples/question_answering_site/run.py [--models tiny|builtin|real] [--data BEIR] [--out FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from community import Site, invent, prepare
from models import swaps
from results import effectiveness, figures, similarity
from running import options, searchfit

import searchfit as engine
from searchfit.rerank import Reranker
from searchfit.similar import similar_texts


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument(
        "--data", type=Path, help="questions and answers as a BEIR folder; default: invented ones"
    )
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    site = prepare(asked.data or invent(out / "site"), out)
    config, workspace, reranker = HERE / "config.toml", out / "search", out / "reranker"
    stand_ins = swaps(config, asked.models, out / "models", site.texts())
    searchfit(
        *("fit", site.documents, "--config", config, *stand_ins, "-o", workspace),
        *("--queries", site.test, "--pairs", site.triples),
    )
    similarity(workspace)
    searchfit("train-reranker", workspace, "-o", reranker)
    searchfit("train", workspace, "--set", f"rerank.model={reranker}")
    figures(workspace)
    effectiveness(workspace)
    show(site, workspace, reranker)


def show(site: Site, workspace: Path, reranker: Path) -> None:
    """Search, read the results again with the cross-encoder, and find questions that are asked twice."""
    ws, model = engine.open(workspace), Reranker.load(str(reranker))
    question = next(iter(site.questions.values()))
    hits = ws.search(question, k=10)
    read = sorted(
        zip(model.scores(question, [hit.text for hit in hits]), hits, strict=True), key=lambda one: -one[0]
    )
    print(f"\n{question}: the first 10, read again by the cross-encoder:")
    for score, hit in read[:5]:
        print(f"  {score:.3f}  (was {hit.rank}) {hit.snippet[:100]}")
    print("\nthe most similar questions:")
    for pair in similar_texts(list(site.questions.values()), k=5, workspace=workspace):
        print(f"  {pair.score:.3f}  {pair.text_a}\n         {pair.text_b}")


if __name__ == "__main__":
    main()
