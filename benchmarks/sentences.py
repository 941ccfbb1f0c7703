"""Compare two ways to search by sentences: python benchmarks/sentences.py WORKSPACE [FOLDER] [--queries N]

Every sentence vector of the index is compared with the question, or those of the passages that the other legs
found (`index.exact_sentences` decides). With FOLDER, in the BEIR layout, its judged test questions are asked
and nDCG@10 is printed; without it WORKSPACE is an index of benchmarks/search.py, whose questions are asked.
Milliseconds are medians of the processor's time of one question, beside encoding it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from searchfit.judged import judged_queries
from searchfit.metrics import means, score_run
from searchfit.request import Request
from searchfit.search import Searcher, open_searcher


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    if options.folder:
        searcher = open_searcher(options.workspace)
        asked, queries = judged_queries(options.folder, "test")
        qrels = asked.qrels
    else:
        searcher = Searcher(options.workspace)
        texts = json.loads((options.workspace / "questions.json").read_text(encoding="utf-8"))
        queries, qrels = {str(number): text for number, text in enumerate(texts)}, {}
    names = np.random.default_rng(0).permutation(list(queries))[: options.queries].tolist()
    vectors = dict(zip(names, searcher.encoder.encode_queries([queries[n] for n in names]), strict=True))
    print(f"{searcher.corpus.count} passages, {searcher.corpus.sentences} sentences, {len(names)} questions")
    for label, most in (("every sentence", 1 << 62), ("those of candidates", 0)):
        searcher.settings = searcher.settings.model_copy(update={"exact_sentences": most})
        run, spent = {}, []
        for name in names:
            begun = time.process_time()
            hits = searcher.answer(Request(queries[name]), vectors[name]).hits
            spent.append(time.process_time() - begun)
            run[name] = {hit.document_id: -float(hit.rank) for hit in hits}
        told = f"{label}: {1000 * float(np.median(spent)):.1f} ms"
        if qrels:
            own = {name: qrels[name] for name in names}
            told += f", nDCG@10 {means(score_run(run, own, ['ndcg@10']))['ndcg@10']:.4f}"
        print(told, flush=True)


if __name__ == "__main__":
    main()
