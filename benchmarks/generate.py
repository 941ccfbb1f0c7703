"""Queries per second of the t5 generator on a model of t5-small's shape with random weights.

    python benchmarks/generate.py [--passages 128] [--tokens 32] [--loop 6] [--source FILE] [--rounds 1]
    python benchmarks/generate.py --memory [--passages 100000]

Compares, at three sampled queries of exactly --tokens tokens for each passage: (a) one passage at a time with
model.generate, as tutorials show, over the first --loop passages; (b) transformers in batches of 16, in file
order; (c) searchfit with transformers; (d) searchfit with CTranslate2 (int8); (e) CTranslate2 called directly
on tokenized and sorted input with the same decoding, the limit. (c), (d) and (e) sample from the nucleus of
the 256 likeliest tokens; (a) and (b) as transformers does unless told otherwise. Each takes the best of
--rounds; on a machine that has other work, CPU time tells more. The passages are pieces of the standard
library's documentation, or of the text file --source.

With --memory: a simulated generator writes for --passages passages (100,000 unless told otherwise) through
batches, ledger and part files; prints the peak memory on the way.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import pydoc
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from searchfit.config import load_settings
from searchfit.generators import Task, Written
from searchfit.generators.batching import task_batches
from searchfit.records import Passage

MODULES = "argparse asyncio collections csv datetime decimal email.message json logging pathlib shutil socket"
VOCABULARY = 32_128

Rates = tuple[float, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, help="how many (128; with --memory 100000)")
    parser.add_argument("--tokens", type=int, default=32, help="length of every query")
    parser.add_argument("--loop", type=int, default=6, help="passages of the slow loop (a)")
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many is shown")
    parser.add_argument(
        "--source", type=Path, help="a text file instead of the standard library's documentation"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory with a simulated generator")
    options = parser.parse_args()
    if options.memory:
        memory(options.passages or 100_000)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait take no CPU time
    passages = pieces(options.source, options.passages or 128)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model", passages)
        rates = dict(speed(model, passages, options))
    show(rates)


def pieces(source: Path | None, count: int) -> list[Passage]:
    """Passages of 200 to 1,000 characters, in file order."""
    if source:
        text = source.read_text(encoding="utf-8")
    else:
        modules = [importlib.import_module(name) for name in MODULES.split()]
        text = "\n".join(pydoc.plain(pydoc.render_doc(module)) for module in modules)
    words, rng, found, start = " ".join(text.split()), random.Random(1), [], 0
    while start < len(words) and len(found) < count:
        size = rng.randint(200, 1000)
        piece = words[start : start + size]
        found.append(Passage(f"p{len(found)}", "d", 0, "", piece, 0, len(piece), ()))
        start += size
    return found


def make_model(folder: Path, passages: Sequence[Passage]) -> Path:
    """A T5 of 60 million random parameters, and a tokenizer trained on the passages."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([passage.text for passage in passages], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    # Fill up, so that each output of the network is a token.
    tokenizer.add_tokens([f"<{n}>" for n in range(VOCABULARY - tokenizer.get_vocab_size())])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    shape = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    config = T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **shape)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def speed(model: Path, passages: list[Passage], options: argparse.Namespace) -> Iterator[tuple[str, Rates]]:
    """(system, its rates), each after the model is loaded."""
    from searchfit.generators.t5_engines import TransformersEngine, load_tokenizer

    tokenizer = load_tokenizer(model)
    loaded = TransformersEngine(model, "cpu").model
    few = passages[: options.loop]

    def tutorial(rows: Sequence[Passage], size: int) -> int:
        return sum(
            len(by_hand(loaded, tokenizer, rows[start : start + size], options.tokens))
            for start in range(0, len(rows), size)
        )

    yield "(a) one passage at a time", rate(lambda: tutorial(few, 1), options.rounds)
    yield "(b) batches in file order", rate(lambda: tutorial(passages, 16), options.rounds)
    for label, engine in (
        ("(c) searchfit, transformers", "transformers"),
        ("(d) searchfit, CTranslate2", "ctranslate2"),
    ):
        made = searchfit(model, engine, options.tokens)
        list(made.write([Task(passages[0])]))
        yield label, rate(lambda made=made: ours(made, passages), options.rounds)
        if engine == "ctranslate2":
            yield "(e) CTranslate2 directly", direct(made, passages, options)


def rate(run: Callable[[], int], rounds: int) -> Rates:
    """Queries a second and a second of CPU time, each the best of so many rounds."""
    best = (0.0, 0.0)
    for _ in range(rounds):
        started, busy = time.perf_counter(), time.process_time()
        queries = run()
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        best = (max(best[0], queries / seconds), max(best[1], queries / cpu))
    return best


def by_hand(model: Any, tokenizer: Any, rows: Sequence[Passage], length: int) -> list[str]:
    """The three queries of each passage, as tutorials get them."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    inputs = tokenizer(
        [row.text for row in rows], padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            top_p=0.95,
            num_return_sequences=3,
            max_new_tokens=length,
            min_new_tokens=length,
        )
    if out.shape[1] != length + 1:
        raise RuntimeError(f"wrote {out.shape[1] - 1} tokens, not {length}")
    texts: list[str] = tokenizer.batch_decode(out, skip_special_tokens=True)
    return texts


def searchfit(model: Path, engine: str, length: int) -> Any:
    """The generator as a user gets it, but for the fixed length of what it writes."""
    from searchfit.generators.t5 import T5Generator

    settings = load_settings(values={"t5.engine": engine, "t5.max_new_tokens": length, "t5.device": "cpu"})
    made = T5Generator("t5", str(model), 3, settings)
    made.decoding = dataclasses.replace(made.decoding, min_new_tokens=length)
    return made


def ours(made: Any, passages: Sequence[Passage]) -> int:
    """Queries written by the generator."""
    return sum(len(written.queries) for group in made.write(map(Task, passages)) for written in group)


def direct(made: Any, passages: Sequence[Passage], options: argparse.Namespace) -> Rates:
    """Rates of one call of the converted model on tokens that are sorted by length."""
    import ctranslate2

    from searchfit.encoders.device import usable_cores
    from searchfit.generators.t5_convert import converted
    from searchfit.generators.t5_engines import _INNER_TOKENS, CANDIDATES

    translator = ctranslate2.Translator(
        str(converted(made.folder, "int8")),
        compute_type="int8",
        inter_threads=usable_cores(),
        intra_threads=1,
    )
    rows = [made.tokenizer.convert_ids_to_tokens(list(row)) for row in made._tokenize(passages)]
    rows.sort(key=len, reverse=True)

    def run() -> int:
        results = translator.translate_batch(
            rows,
            max_batch_size=_INNER_TOKENS,
            batch_type="tokens",
            beam_size=1,
            num_hypotheses=3,
            sampling_topk=CANDIDATES,
            sampling_topp=0.95,
            max_decoding_length=options.tokens,
            min_decoding_length=options.tokens,
        )
        return sum(len(result.hypotheses) for result in results)

    return rate(run, options.rounds)


def show(rates: dict[str, Rates]) -> None:
    """Print a Markdown table, with the ratios that are asked for."""
    loop, limit = rates["(a) one passage at a time"], rates["(e) CTranslate2 directly"]
    heads = ("queries/s", "x (a)", "of (e)", "queries/CPU s", "x (a)", "of (e)")
    print(f"| system | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for system, values in rates.items():
        cells = [
            f"{value:.2f} | {value / slow:.1f} | {value / most:.2f}"
            for value, slow, most in zip(values, loop, limit, strict=True)
        ]
        print(f"| {system} | {' | '.join(cells)} |")


class Simulated:
    """Answers at once, through real batches."""

    name, per_passage, fingerprint = "simulated", 3, "1"
    details: dict[str, str] = {}  # noqa: RUF012

    def content(self, passage: Passage) -> tuple[str, ...]:
        """As t5."""
        return passage.title, passage.text

    def most_cost(self, passage: Passage) -> float:  # noqa: ARG002
        """Nothing."""
        return 0.0

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """Three queries a passage, from its words."""

        def tokenize(passages: Sequence[Passage]) -> list[list[int]]:
            return [list(range(len(passage.text.split()))) for passage in passages]

        for batch in task_batches(tasks, tokenize, 8192, 192):
            yield [
                Written(
                    item.passage, tuple((f"what is {n} {item.passage.text[:40]}", "question") for n in "abc")
                )
                for item in batch
            ]


def memory(count: int) -> None:
    """Run the generate stage over `count` passages and print the peak memory on the way."""
    from searchfit.keyword import Analyzer, KeywordIndex
    from searchfit.stages import Tools, generate

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_passages(folder / "passages.parquet", count)
        KeywordIndex.build(["a passage"], Analyzer("english")).save(folder / "keyword")  # of phrases alone
        points = [count // 10, count // 2, count]
        print(f"before: {peak()} MB\n| passages | peak memory, MB | seconds |\n|---|---|---|")
        started = time.perf_counter()

        def progress(_: str, done: int, *__: object) -> None:
            while points and done >= points[0]:
                print(f"| {points.pop(0)} | {peak()} | {time.perf_counter() - started:.0f} |", flush=True)

        generate.load_generator = lambda *_: Simulated()  # type: ignore[assignment]
        settings = load_settings(values={"generate.max_queries": 3 * count})
        result = generate.run(
            settings,
            {n: folder / n for n in ("passages.parquet", "keyword")},
            Tools(folder / "out", progress=progress),
        )
        seconds = time.perf_counter() - started
        print(f"| {count}, and {result.counts['queries']} queries in part files | {peak()} | {seconds:.0f} |")


def write_passages(path: Path, count: int) -> None:
    """passages.parquet with `count` passages of about 400 characters, in row groups of 5,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from searchfit.records import PASSAGES

    with pq.ParquetWriter(path, PASSAGES) as writer:
        for start in range(0, count, 5000):
            texts = [
                f"Passage {n} " + "says a little of what it is about " * 12
                for n in range(start, min(start + 5000, count))
            ]
            rows = [
                (f"d{start + i}#0", f"d{start + i}", start + i, "", text, 0, len(text), [0, len(text)])
                for i, text in enumerate(texts)
            ]
            writer.write_table(
                pa.table([list(column) for column in zip(*rows, strict=True)], schema=PASSAGES)
            )


def peak() -> int:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
