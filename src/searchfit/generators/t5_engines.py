"""What runs an encoder-decoder model: transformers (GPU, or CPU in fp32) or CTranslate2 (CPU, int8)."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from searchfit.config import T5Settings
from searchfit.errors import MissingExtraError, ModelError, SettingsError
from searchfit.generators.batching import seed_of
from searchfit.generators.t5_convert import converted, model_errors

if TYPE_CHECKING:
    import torch

CANDIDATES = 256
"""The likeliest tokens, which the nucleus is taken from: top-k before top-p, as in transformers. Sorting a
vocabulary of 32,000 at every step costs three times as much as all the rest of CTranslate2's work, and a
trained model leaves little beyond these. It stands in the manifest as top_k."""

# Padded tokens that CTranslate2 works on at once: larger ones fall out of the cache of a CPU.
_INNER_TOKENS = 2_048

# Batches in work at once, each with its share of the cores: they wait for each other less than the threads of
# one batch do. Each that samples holds the weights once more.
_WORKERS = 4

Answers = list[list[list[int]]]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How queries are written: method, queries a passage, beams, and the nucleus of sampling.

    Sampling draws from the smallest set of tokens whose probability reaches `top_p` (Holtzman et al. 2020,
    "The curious case of neural text degeneration") among the CANDIDATES likeliest. `min_new_tokens` above 0
    makes queries of a fixed length, for measuring.
    """

    method: Literal["sample", "beam", "greedy"]
    queries: int
    beams: int
    max_new_tokens: int
    top_p: float
    temperature: float
    min_new_tokens: int = 0

    @classmethod
    def of(cls, options: T5Settings, per_passage: int) -> Decoding:
        """The decoding that the settings ask for; greedy writes one query."""
        method = options.decoding
        queries = 1 if method == "greedy" else per_passage
        beams = max(options.beams, queries) if method == "beam" else 1
        return cls(method, queries, beams, options.max_new_tokens, options.top_p, options.temperature)

    @property
    def rows(self) -> int:
        """Sequences in work for one passage."""
        return max(self.queries, self.beams)

    def stated(self) -> dict[str, str | int | float]:
        """The parameters that matter for the method, by name."""
        stated: dict[str, str | int | float] = {
            "method": self.method,
            "queries": self.queries,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.method == "sample":
            stated |= {"top_p": self.top_p, "top_k": CANDIDATES, "temperature": self.temperature}
        if self.method == "beam":
            stated["beams"] = self.beams
        return stated


class Engine(Protocol):
    """A loaded model."""

    @property
    def workers(self) -> int:
        """How many threads may call `generate` at once."""

    def generate(self, rows: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> Answers:
        """Token numbers of the queries of each row of input tokens. Equal arguments give equal answers.

        Raises MemoryError or RuntimeError where the memory does not suffice.
        """


def read_config(name: str, folder: Path) -> Any:
    """The model's configuration. Raises ModelError where it is not that of an encoder-decoder."""
    from transformers import AutoConfig

    with model_errors(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not config.is_encoder_decoder:
        raise ModelError(
            f"model {name!r} ({config.model_type}) is no encoder-decoder, as T5 and doc2query models are.",
            "For a language model write chat:MODEL.",
        )
    return config


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises ModelError."""
    from transformers import AutoTokenizer

    from searchfit.encoders.device import quiet

    quiet()
    with model_errors(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def choose_engine(options: T5Settings) -> tuple[str, str]:
    """(engine, device) of the settings, "auto" resolved. Raises MissingExtraError and SettingsError."""
    installed = importlib.util.find_spec("ctranslate2") is not None
    if options.engine == "ctranslate2":
        if options.device not in ("auto", "cpu"):
            raise SettingsError(
                f"t5.engine ctranslate2 runs on the CPU, but t5.device is {options.device!r}.",
                "Say t5.engine=transformers for a GPU, or t5.device=cpu.",
            )
        if not installed:
            raise MissingExtraError("The engine ctranslate2", "t5")
        return "ctranslate2", "cpu"
    device = options.device if options.device != "auto" else _best_device()
    if options.engine == "auto" and device == "cpu" and installed:
        return "ctranslate2", device
    return "transformers", device


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_engine(name: str, folder: Path, device: str, tokenizer: Any) -> Engine:
    """Load a model folder into an engine. Raises ModelError."""
    if name == "ctranslate2":
        return CTranslate2Engine(folder, tokenizer)
    return TransformersEngine(folder, device)


class TransformersEngine:
    """The model in torch: bf16 on a GPU that is fast at it, else fp32.

    Each row draws its own numbers, from a seed made of its tokens: what is written for a passage does not
    follow from the batch that it stands in.
    """

    workers = 1

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM

        from searchfit.encoders.device import has_fast_bf16, quiet, tune_process

        quiet()
        tune_process()
        place = torch.device(device)
        fast = place.type != "cpu" and has_fast_bf16(place)
        with model_errors(folder):
            model = AutoModelForSeq2SeqLM.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.bfloat16 if fast else torch.float32,
            )
            self.model = model.to(place).eval()
        self._tokens = _special_tokens(model)
        self._pad = int(self._tokens["pad_token_id"])

    def generate(self, rows: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> Answers:
        """Token numbers of the queries of each row of input tokens."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList
        from transformers.modeling_outputs import BaseModelOutput

        sampled = decoding.method == "sample"
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self._pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        # Also put into the model: what is left unsaid here would be taken from the model's own file.
        self.model.generation_config = config = GenerationConfig(
            **self._tokens,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            do_sample=False,
            num_beams=decoding.beams,
            num_return_sequences=1 if sampled else decoding.queries,
        )
        processors = LogitsProcessorList()
        with torch.inference_mode():
            hidden = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            if sampled:
                hidden = hidden.repeat_interleave(decoding.queries, dim=0)
                mask = mask.repeat_interleave(decoding.queries, dim=0)
                chances = torch.from_numpy(_chances(rows, decoding, seed)).to(hidden.device)
                processors.append(_Draw(chances, decoding))
            out = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=mask,
                generation_config=config,
                logits_processor=processors,
            )
        return self._answers(out.tolist(), decoding.queries)

    def _answers(self, written: list[list[int]], queries: int) -> Answers:
        end = self._tokens["eos_token_id"]
        ends = set(end if isinstance(end, list) else [end])
        # The first token only starts the decoder, and what follows the end is padding.
        cut = [
            row[1 : next((i for i, token in enumerate(row) if i and token in ends), len(row))]
            for row in written
        ]
        return [cut[start : start + queries] for start in range(0, len(cut), queries)]


def _special_tokens(model: Any) -> dict[str, Any]:
    """Start, end and padding tokens, which are the model's own; all else of decoding is ours to say."""
    found = {}
    for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, name, None)
        found[name] = getattr(model.config, name, None) if value is None else value
    if found["pad_token_id"] is None:
        found["pad_token_id"] = 0
    return found


def _chances(rows: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> Any:
    """(rows x queries, max_new_tokens) float32 numbers from 0 to 1, of each row by its own seed."""
    shape = (decoding.queries, decoding.max_new_tokens)
    drawn = [np.random.default_rng(seed_of(seed, row)).random(shape, np.float32) for row in rows]
    return np.concatenate(drawn)


class _Draw:
    """Leaves of each row's scores only the token that is drawn, so that the greedy choice is a sample."""

    def __init__(self, chances: torch.Tensor, decoding: Decoding) -> None:
        self._chances = chances
        self._decoding = decoding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        # The first token starts the decoder.
        chances = self._chances[:, input_ids.shape[1] - 1]
        drawn = draw(scores.float() / self._decoding.temperature, chances, self._decoding.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(scores: torch.Tensor, chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """(rows,) tokens drawn from the nucleus of (rows, vocabulary) scores, by (rows,) numbers from 0 to 1."""
    import torch

    best, tokens = scores.topk(min(CANDIDATES, scores.shape[-1]), dim=-1)
    shares = torch.softmax(best, dim=-1)
    before = shares.cumsum(dim=-1) - shares
    kept = torch.where(before < top_p, shares, 0.0).cumsum(dim=-1)
    places = torch.searchsorted(kept, (chances * kept[:, -1])[:, None], right=True)
    # A number that rounds up to the whole would fall behind the last token of the nucleus.
    places = torch.minimum(places, (before < top_p).sum(dim=-1, keepdim=True) - 1)
    return tokens.gather(1, places)[:, 0]


class CTranslate2Engine:
    """The model converted for CTranslate2, on the CPU. `generate` may be called by `workers` threads at once.

    Its sampler has a stream of numbers for each thread, seeded once, when the thread first draws. To draw the
    same for the same batch, a batch that is sampled gets a new translator of its own; reading the weights
    again takes some hundredths of the time of a batch.
    """

    def __init__(self, folder: Path, tokenizer: Any, precision: Literal["int8", "float32"] = "int8") -> None:
        from searchfit.encoders.device import usable_cores

        self._tokenizer = tokenizer
        self._precision = precision
        self._path = converted(folder, precision)
        told = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(told) if told.isdecimal() and int(told) else usable_cores()
        self.workers = min(cores, _WORKERS)
        self._threads = cores // self.workers
        self._seeding, self._loading = threading.Lock(), threading.Lock()

    def generate(self, rows: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> Answers:
        """Token numbers of the queries of each row of input tokens."""
        options: dict[str, Any] = {
            "beam_size": decoding.beams,
            "max_batch_size": _INNER_TOKENS,
            "batch_type": "tokens",
            "num_hypotheses": decoding.queries,
            "max_input_length": 0,
            "max_decoding_length": decoding.max_new_tokens,
            "min_decoding_length": max(1, decoding.min_new_tokens),
        }
        sources = [self._tokenizer.convert_ids_to_tokens(list(row)) for row in rows]
        if decoding.method == "sample":
            results = self._sample(sources, decoding, seed_of(seed, *rows), options)
        else:
            with self._loading:
                translator = self._shared
            results = translator.translate_batch(sources, sampling_topk=1, **options)
        return [
            [self._tokenizer.convert_tokens_to_ids(tokens) for tokens in result.hypotheses]
            for result in results
        ]

    @cached_property
    def _shared(self) -> Any:
        return self._open(self.workers)

    def _sample(
        self, sources: list[list[str]], decoding: Decoding, seed: int, options: dict[str, Any]
    ) -> list[Any]:
        import ctranslate2

        options = options | {
            # It refuses a number above the size of the vocabulary; 0 takes all.
            "sampling_topk": CANDIDATES if len(self._tokenizer) > CANDIDATES else 0,
            "sampling_topp": decoding.top_p,
            "sampling_temperature": decoding.temperature,
        }
        translator = self._open(1)
        with self._seeding:
            ctranslate2.set_random_seed(seed)
            # Makes its thread take the seed now, before another batch sets its own.
            brief = {"max_decoding_length": 1, "min_decoding_length": 1}
            translator.translate_batch([sources[0][-2:]], **(options | brief))
        found: list[Any] = translator.translate_batch(sources, **options)
        return found

    def _open(self, workers: int) -> Any:
        import ctranslate2

        return ctranslate2.Translator(
            str(self._path),
            device="cpu",
            compute_type=self._precision,
            inter_threads=workers,
            intra_threads=self._threads,
        )
