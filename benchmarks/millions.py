"""Millions of short passages through the stages on one machine: seconds, passages a second, peak memory.

    python benchmarks/millions.py [--passages 200000 2000000] [--queries 6000] [--dimension 384]

The documents are made up: 15 to 40 words in one to three sentences, drawn by Zipf's law from 300,000 words,
the most frequent of which are English function words; each is a passage. Vectors are random, in place of the
encode stage's, and the model is one layer of random weights with a tokenizer of its own. Each stage runs in
a process of its own, which tells the highest memory that it held, mapped pages of files included, and the
processor's seconds beside the wall's. Of two sizes the growth of each stage's time is printed: 1.00 is
linear. The screen looks queries up by keywords alone (`screen.legs`). --queries is `generate.max_queries`;
0 writes queries for every passage.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from searchfit.config import Settings, load_settings
from searchfit.keyword import function_words
from searchfit.recipe import STAGES
from searchfit.records import Engine
from searchfit.stages import Tools
from searchfit.writing import link_tree, size, write_json

MEASURED = ("ingest", "split", "keyword", "gauge", "generate", "screen", "holdout", "label", "index")
WORDS = 300_000
_CHUNK = 10_000
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--queries", type=int, default=6000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--stages", nargs="+", default=MEASURED, choices=[stage.name for stage in STAGES])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--keep", type=Path, help="work here, and leave what was made")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only, options.keep, options)))
        return
    with tempfile.TemporaryDirectory(prefix="millions-") as scratch:
        found = {count: run(count, options.keep or Path(scratch), options) for count in options.passages}
    tell(found)
    if options.json:
        write_json(options.json, found)


def run(count: int, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of each stage over so many passages."""
    folder = folder / str(count)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        write_documents(folder / "documents.csv", count)
        save_model(folder / "model", options.dimension)
    asked = ["--queries", str(options.queries), "--dimension", str(options.dimension)]
    asked += [part for pair in options.set for part in ("--set", pair)]
    found: dict[str, dict[str, float]] = {}
    for stage in options.stages:
        command = [sys.executable, __file__, "--only", stage, "--keep", str(folder), *asked]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[stage] = json.loads(told.splitlines()[-1]) | {"passages": count}
        print(count, stage, found[stage], flush=True)
        if stage == "split":
            write_vectors(folder, options.dimension)
    if not options.keep:
        shutil.rmtree(folder)
    return found


def measured(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run a stage over what the ones before it left in a folder."""
    stage = next(stage for stage in STAGES if stage.name == name)
    inputs = {artefact: folder / artefact for artefact in stage.reads}
    queries = options.queries or 10 * 3 * sum(1 for _ in (folder / "documents.csv").open())
    settings = settings_of(folder, queries, options.set)
    tools = Tools(folder, "made", ledger=folder / "ledger.sqlite")
    module, view = stage.module, settings.only(*stage.sections)
    clear_peak()
    begun, before = time.perf_counter(), processor()
    result = module.run(view, inputs, tools)
    figures = {
        "seconds": round(time.perf_counter() - begun, 2),
        "processor": round(processor() - before, 2),
        "peak_mib": memory("VmHWM"),
        "disk_mib": sum(max(0, size(folder / made)) for made in stage.names("made")) >> 20,
    }
    print(name, dict(result.counts), file=sys.stderr)
    return figures


def settings_of(folder: Path, queries: int, more: Sequence[str]) -> Settings:
    """The defaults, but for the source, the model and the screen by keywords alone."""
    values: dict[str, Any] = {
        "source.source": str(folder / "documents.csv"),
        "source.text": ("text",),
        "source.id": "id",
        "model.name": str(folder / "model"),
        "model.precision": "fp32",
        "generate.max_queries": queries,
        "screen.legs": "keyword",
    }
    return load_settings(values=values | dict(pair.split("=", 1) for pair in more))


def write_documents(path: Path, count: int) -> None:
    """A CSV file of made-up documents, the same for the same count."""
    rng = np.random.default_rng(20)
    words = np.array(list(vocabulary()), object)
    mass = np.cumsum(1 / (np.arange(len(words)) + 2.7) ** 1.15)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "price"])
        for start in range(0, count, _CHUNK):
            lengths = rng.integers(15, 41, min(_CHUNK, count - start))
            drawn = words[np.searchsorted(mass, rng.random(lengths.sum()) * mass[-1])]
            ends = np.cumsum(lengths)
            for number, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True), start):
                own = drawn[end - length : end]
                text = " ".join(
                    " ".join(part).capitalize() + "." for part in np.array_split(own, length // 12)
                )
                rows.writerow([f"document-{number}", text, number * 7919 % 1000])


def vocabulary() -> Iterator[str]:
    """300,000 distinct words, the most frequent first."""
    yield from sorted(function_words("english"), key=lambda word: (len(word), word))
    size = len(_SYLLABLES)
    for number in range(WORDS):
        parts = [number % size, number // size % size, number // size**2]
        # Longer ones the rarer they are, as words are.
        yield "".join(_SYLLABLES[part % size] for part in parts[: 3 if number >= size**2 else 2]) + (
            "x" if number < size else ""
        )


def save_model(folder: Path, dimension: int) -> None:
    """An encoder of one layer and random weights, whose tokenizer knows syllables."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-?"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{char}" for char in letters)]
    pieces += [*_SYLLABLES, *(f"##{part}" for part in _SYLLABLES)]
    pieces += sorted(function_words("english") - set(pieces))
    tokenizer = Tokenizer(WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=256, mask_token="[MASK]", **names
    )
    raw = folder.with_name("bert")
    fast.save_pretrained(raw)
    torch.manual_seed(1)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(pieces), hidden_size=dimension, max_position_embeddings=258, **sizes)
    BertModel(config).save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=256)
    modules = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)


def write_vectors(folder: Path, dimension: int) -> None:
    """What encode, choose and train would leave: random unit vectors, and the untuned engine."""
    encoded = folder / "encoded"
    encoded.mkdir(exist_ok=True)
    documents, lengths = [], []
    for batch in pq.ParquetFile(folder / "passages.parquet").iter_batches(columns=["document", "sentences"]):
        documents.append(batch["document"].to_numpy())
        lengths.append(np.diff(batch["sentences"].offsets.to_numpy()) // 2)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    np.save(encoded / "documents.npy", np.concatenate(documents))
    np.save(encoded / "offsets.npy", offsets)
    rng = np.random.default_rng(21)
    for name, count in (("passages", len(offsets) - 1), ("sentences", int(offsets[-1]))):
        with (encoded / f"{name}.npy").open("wb") as file:
            shape = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
            np.lib.format.write_array_header_1_0(file, shape)
            for start in range(0, count, _CHUNK):
                part = rng.standard_normal((min(_CHUNK, count - start), dimension), np.float32)
                file.write((part / np.linalg.norm(part, axis=1, keepdims=True)).tobytes())
    write_json(encoded / "info.json", {"similarity": "cosine", "dense_weight": 1.0, "words": False})
    (folder / "evaluation").mkdir(exist_ok=True)
    write_json(folder / "evaluation/choice.json", {"chosen": Engine("untuned engine").to_dict()})
    link_tree(folder / "model", folder / "models/tuned")


def clear_peak() -> None:
    """Count the highest memory from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory(name: str) -> int:
    """A figure of this process's memory, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found.group(1)) >> 10 if found else 0


def processor() -> float:
    """Seconds of processors so far, with the processes that were started."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def tell(found: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print a table, and of two sizes or more the growth from the first to the last."""
    print("\n| passages | stage | seconds | processor s | passages/s | peak MiB | disk MiB |")
    print("|---|---|---|---|---|---|---|")
    for count, stages in found.items():
        for name, told in stages.items():
            rate = count / max(told["seconds"], 0.01)
            print(
                f"| {count:,} | {name} | {told['seconds']:.1f} | {told['processor']:.1f} | {rate:,.0f} "
                f"| {told['peak_mib']:,} | {told['disk_mib']:,} |"
            )
    first, last = min(found), max(found)
    if first == last:
        return
    print(f"\n{first:,} to {last:,}, growth over linear (wall, processor), bytes of memory a passage more")
    for name, small in found[first].items():
        large, times = found[last][name], last / first
        growth = [large[of] / max(small[of], 0.01) / times for of in ("seconds", "processor")]
        more = (large["peak_mib"] - small["peak_mib"]) * 2**20 / (last - first)
        print(f"{name:9} {growth[0]:5.2f} {growth[1]:5.2f} {more:8.0f}")


if __name__ == "__main__":
    main()
