"""Encoder-decoder query generators: GenQ with T5, doc2query and their like.

The defaults are the recipe of GenQ (Thakur et al. 2021, "BEIR: A heterogeneous benchmark for zero-shot
evaluation of information retrieval models") and GPL (Wang et al. 2022, "GPL: Generative pseudo labeling for
unsupervised domain adaptation of dense retrieval"): three queries a passage by nucleus sampling.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from searchfit.config import Settings
from searchfit.encoders import locate, model_digest
from searchfit.encoders.device import usable_cores
from searchfit.errors import SettingsError
from searchfit.executors import LOCAL, Executor
from searchfit.generators import Task, Written
from searchfit.generators.batching import Item, halving, task_batches

if TYPE_CHECKING:
    from searchfit.generators.t5_engines import Decoding, Engine
    from searchfit.records import Passage

_VERSION = 1

# Padded tokens a batch, read and written. A batch is what a kill loses, so small ones on a CPU.
_BATCH_TOKENS = {"cpu": 8_192, "gpu": 131_072}


class T5Generator:
    """Writes the queries of a passage with an encoder-decoder model; their style is "question".

    Where decoding is by chance, each passage (transformers) or batch (CTranslate2) has a seed that follows
    from the settings and from its own text, so that a run that was killed and carried on writes the same.
    """

    def __init__(
        self,
        name: str,
        model: str,
        per_passage: int,
        settings: Settings,
        executor: Executor = LOCAL,
    ) -> None:
        """Reads the model's configuration; weights are loaded for the first passage that needs them.

        Raises ModelError where `model` (a folder or a hub id) is absent or no encoder-decoder, SettingsError
        where settings do not fit it, MissingExtraError where CTranslate2 is asked for and not installed.
        """
        from searchfit.generators.t5_engines import Decoding, choose_engine, read_config

        options = settings.t5
        self._arguments = (name, model, per_passage, settings)
        self._executor = executor
        self.name = name
        self.folder = locate(model)
        self.revision = model_digest(model)
        self.settings = options
        self.seed = settings.seed
        self.config = read_config(model, self.folder)
        window = getattr(self.config, "max_position_embeddings", None) or options.max_input_tokens
        if options.max_input_tokens > window:
            raise SettingsError(
                f"t5.max_input_tokens is {options.max_input_tokens}, model {model!r} reads at most {window}.",
                f"Say t5.max_input_tokens={window} or less.",
            )
        self.engine_name, self.device = choose_engine(options)
        self.decoding: Decoding = Decoding.of(options, per_passage)
        self.per_passage = self.decoding.queries

    def __reduce__(self) -> tuple[type[T5Generator], tuple[str, str, int, Settings]]:
        return T5Generator, self._arguments

    @property
    def fingerprint(self) -> str:
        """Follows from the model's files, the decoding and what is read of a passage; not from engine, device
        and batch size, which are about how fast the same is done."""
        parts = [_VERSION, self.revision, self.decoding.stated(), *self._reading()]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    @property
    def details(self) -> Mapping[str, str]:
        """Model folder, revision (hash of its files), engine and decoding."""
        decoding = " ".join(f"{key}={value}" for key, value in self.decoding.stated().items())
        return {
            "model": str(self.folder),
            "revision": self.revision,
            "engine": f"{self.engine_name} on {self.device}",
            "decoding": decoding,
        }

    def content(self, passage: Passage) -> tuple[str, ...]:
        """Title and text."""
        return passage.title, passage.text

    def most_cost(self, passage: Passage) -> float:  # noqa: ARG002  (the protocol's)
        """0: a local model costs nothing."""
        return 0.0

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """What was made of each task that is not known, batch by batch, batches of like length.

        A passage that does not fit into memory alone, or for which the model writes nothing, comes with a
        fault. Raises ModelError where the weights or the tokenizer cannot be loaded.
        """
        kind = "cpu" if self.device == "cpu" else "gpu"
        budget = self.settings.batch_tokens or _BATCH_TOKENS[kind]
        reserve = self.decoding.rows * self.decoding.max_new_tokens
        return self._executor.map_batches(self._at_once, task_batches(tasks, self._tokenize, budget, reserve))

    def _at_once(self, batches: Iterable[list[Item]]) -> Iterator[list[Written]]:
        """What was made of each batch, in order; as many are under way as the engine has workers."""
        with ThreadPoolExecutor(max(4, usable_cores())) as pool:
            waiting: deque[Future[list[Written]]] = deque()
            try:
                for batch in batches:
                    # The engine loads here, so not where every passage is known.
                    while len(waiting) >= self.engine.workers:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(halving, batch, self._run))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        from searchfit.generators.t5_engines import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def engine(self) -> Engine:
        """The loaded model."""
        from searchfit.generators.t5_engines import load_engine

        return load_engine(self.engine_name, self.folder, self.device, self.tokenizer)

    def _reading(self) -> tuple[str, int]:
        return self.settings.prefix, self.settings.max_input_tokens

    def _tokenize(self, passages: Sequence[Passage]) -> Sequence[Sequence[int]]:
        prefix, limit = self._reading()
        texts = [prefix + passage.encoded_text for passage in passages]
        rows: Sequence[Sequence[int]] = self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        return rows

    def _run(self, batch: Sequence[Item]) -> list[Written]:
        answers = self.engine.generate([item.tokens for item in batch], self.decoding, self.seed)
        return [self._written(item, answer) for item, answer in zip(batch, answers, strict=True)]

    def _written(self, item: Item, answer: Sequence[Sequence[int]]) -> Written:
        texts = self.tokenizer.batch_decode(
            [list(ids) for ids in answer], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        lines = (" ".join(text.split()) for text in texts)
        queries = {line.casefold(): line for line in reversed(list(lines)) if line}
        return Written(
            item.passage,
            tuple((line, "question") for line in reversed(queries.values())),
            "" if queries else "the model wrote nothing",
            tokens_in=len(item.tokens),
            tokens_out=sum(len(ids) for ids in answer),
        )
