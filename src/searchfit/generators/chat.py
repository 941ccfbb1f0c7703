"""Queries by local language models: one generation a passage, in batches, that returns them all as JSON."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from searchfit.config import ChatSettings, Settings
from searchfit.encoders import locate, model_digest
from searchfit.errors import MissingExtraError, ModelError, SettingsError
from searchfit.executors import LOCAL, Executor
from searchfit.generators import Task, Written
from searchfit.generators.answers import parse
from searchfit.generators.batching import Item, halving, seed_of, task_batches
from searchfit.generators.prompts import Template
from searchfit.records import Passage

if TYPE_CHECKING:
    import torch

_VERSION = 1

# Padded tokens of a batch, prompts and answers: on a GPU the keys and values of an 8B model take 4 GB.
_BATCH_TOKENS = {"cpu": 8_192, "gpu": 32_768}

# Ends of a turn in the families of chat models, where the generation config does not name them.
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")
_HINT = (
    "chat: takes a causal language model: a folder with config.json, a tokenizer and safetensors weights; "
    "models that need code of their own are refused."
)


class ChatGenerator:
    """Writes with a causal language model and its chat template, a plain format where it has none.

    Answers are sampled by batch, from a seed that follows from the batch's passages, so a run that was
    interrupted writes what it would have written. An answer without queries is asked for once more with
    another seed. Raises ModelError for a model that is absent or cannot be loaded safely, SettingsError for
    quantization without a GPU, and MissingExtraError where its library is not installed.
    """

    def __init__(
        self,
        name: str,
        model: str,
        per_passage: int,
        settings: Settings,
        executor: Executor = LOCAL,
    ) -> None:
        self._arguments = (name, model, per_passage, settings)
        self._executor = executor
        self.name, self.per_passage = name, per_passage
        self._model_name, self._settings, self._seed = model, settings.chat, settings.seed
        self._template = Template.load(settings.prompt, per_passage, settings.seed)
        self._folder = locate(model)
        _check_quantization(self._settings, self._settings.device)

    def __reduce__(self) -> tuple[type[ChatGenerator], tuple[str, str, int, Settings]]:
        return ChatGenerator, self._arguments

    @property
    def fingerprint(self) -> str:
        """Of the model's files, the template, decoding and seed; not of device and batches."""
        chat = self._settings
        parts = (
            *(_VERSION, model_digest(self._model_name), self._template.hash, self._seed, self.per_passage),
            *(chat.temperature, chat.top_p, chat.max_new_tokens, chat.quantization),
        )
        return f"chat-{hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()}"

    @property
    def details(self) -> Mapping[str, str]:
        """Model, its digest, template and decoding."""
        chat = self._settings
        return {
            "model": self._model_name,
            "revision": model_digest(self._model_name),
            "template": self._template.hash,
            "decoding": f"temperature {chat.temperature:g}, top_p {chat.top_p:g}, at most "
            f"{chat.max_new_tokens} tokens, quantization {chat.quantization}",
        }

    def content(self, passage: Passage) -> tuple[str, ...]:
        """Title and text."""
        return (passage.title, passage.text)

    def most_cost(self, passage: Passage) -> float:  # noqa: ARG002 - of the protocol
        """Nothing is paid."""
        return 0.0

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """See `Generator.write`: a batch at a time."""
        device = _device(self._settings.device)
        budget = self._settings.batch_tokens or _BATCH_TOKENS["cpu" if device == "cpu" else "gpu"]
        batches = task_batches(
            tasks,
            lambda passages: self._reader.tokens([self._chat(passage) for passage in passages]),
            budget,
            reserve=self._settings.max_new_tokens,
        )
        return self._executor.map_batches(self._answers, batches)

    @cached_property
    def _reader(self) -> _Reader:
        return _Reader.load(str(self._folder))

    @cached_property
    def _engine(self) -> _Engine:
        return _Engine.load(str(self._folder), self._reader.tokenizer, self._settings)

    def _chat(self, passage: Passage) -> tuple[str, str]:
        prompt = self._template.prompt(passage, special=self._reader.special)
        return prompt.system, prompt.user

    def _answers(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Written]]:
        for batch in batches:
            yield self._answered(batch)

    def _answered(self, batch: Sequence[Item]) -> list[Written]:
        window = self._engine.window - self._settings.max_new_tokens
        fitting = [item for item in batch if len(item.tokens) <= window]
        done = [
            Written(item.passage, fault=f"the prompt has {len(item.tokens)} tokens, the model takes {window}")
            for item in batch
            if len(item.tokens) > window
        ]
        again: list[Item] = []
        first = halving(fitting, lambda part: self._attempt(part, 1, again)) if fitting else []
        last: list[Item] = []
        second = halving(again, lambda part: self._attempt(part, 2, last)) if again else []
        repeated = {written.passage.id: written for written in second}
        return done + [
            _sum(written, repeated[written.passage.id]) if written.passage.id in repeated else written
            for written in first
        ]

    def _attempt(self, part: Sequence[Item], number: int, again: list[Item]) -> list[Written]:
        """One generation for each; those worth another are added to `again`."""
        seed = seed_of(self._seed, str(number), *(item.tokens for item in part))
        done = []
        for item, (reply, many) in zip(part, self._engine.replies(part, seed), strict=True):
            prompt = self._template.prompt(item.passage, special=self._reader.special)
            answer = parse(reply, prompt)
            if answer.fault and not answer.final and self._settings.temperature:
                again.append(item)
            counts = len(item.tokens), many
            done.append(Written(item.passage, answer.queries, answer.fault, *counts))
        return done


def _sum(first: Written, second: Written) -> Written:
    return replace(
        second,
        tokens_in=first.tokens_in + second.tokens_in,
        tokens_out=first.tokens_out + second.tokens_out,
    )


def _check_quantization(settings: ChatSettings, device: str) -> None:
    if settings.quantization == "none":
        return
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if not on_gpu:
        raise SettingsError(
            f"chat.quantization {settings.quantization} needs a CUDA GPU, and there is none in use.",
            'Set chat.quantization to "none".',
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"chat.quantization {settings.quantization}", "quantize")


@dataclass(frozen=True)
class _Reader:
    """A tokenizer and its control tokens."""

    tokenizer: Any
    special: tuple[str, ...]

    @classmethod
    def load(cls, folder: str) -> _Reader:
        from transformers import AutoTokenizer

        from searchfit.encoders.device import quiet

        quiet()
        with _load_errors(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return cls(tokenizer, _special(tokenizer))

    def tokens(self, chats: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The token numbers of (system, user) messages, up to where the answer begins."""
        if self.tokenizer.chat_template is None:
            plain = [f"{system}\n\n{user}\n\n" for system, user in chats]
            return [list(row) for row in self.tokenizer(plain)["input_ids"]]
        texts = [self._rendered(system, user) for system, user in chats]
        # The template has written the special tokens already.
        return [list(row) for row in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _rendered(self, system: str, user: str) -> str:
        from jinja2 import TemplateError

        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        merged = [{"role": "user", "content": f"{system}\n\n{user}"}]
        # Reasoning would use up the answer's tokens; templates that do not know the name take no notice.
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except TemplateError:  # some families have no system message
            return str(self.tokenizer.apply_chat_template(merged, **options))


@dataclass(frozen=True)
class _Engine:
    """A loaded model."""

    model: Any
    tokenizer: Any
    device: torch.device

    @classmethod
    def load(cls, folder: str, tokenizer: Any, settings: ChatSettings) -> _Engine:
        import torch
        from transformers import AutoModelForCausalLM

        from searchfit.encoders.device import has_fast_bf16, quiet, tune_process

        quiet()
        tune_process()
        device = torch.device(_device(settings.device))
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_fast_bf16(device))
        dtype = torch.bfloat16 if bf16 else torch.float32
        with _load_errors(folder):
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtype,
                **_quantized(settings, device, dtype),
            )
        # An encoder would load too, its language head made up at random.
        if absent := sorted(loading["missing_keys"]):
            raise ModelError(f"the model in {folder} is not a language model: no {absent[0]}.", _HINT)
        if settings.quantization == "none":
            model.to(device)
        model.eval()
        # Replaced as a whole: what the folder's file says of top_k or penalties must not be mixed in.
        model.generation_config = _decoding(model, tokenizer, settings)
        return cls(model, tokenizer, device)

    @property
    def window(self) -> int:
        """Tokens of prompt and answer together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    def replies(self, part: Sequence[Item], seed: int) -> list[tuple[str, int]]:
        """The text of each answer, and how many tokens it has."""
        import torch

        longest = max(len(item.tokens) for item in part)
        pad = int(self.model.generation_config.pad_token_id)
        rows = [[pad] * (longest - len(item.tokens)) + list(item.tokens) for item in part]
        mask = [[0] * (longest - len(item.tokens)) + [1] * len(item.tokens) for item in part]
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
            )
        answers = [self._until_end(row) for row in out[:, longest:].tolist()]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return list(zip(texts, map(len, answers), strict=True))

    def _until_end(self, row: list[int]) -> list[int]:
        ends = set(self.model.generation_config.eos_token_id)
        return row[: next((n + 1 for n, token in enumerate(row) if token in ends), len(row))]


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _quantized(settings: ChatSettings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if settings.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    eight = settings.quantization == "8bit"
    config = BitsAndBytesConfig(
        load_in_8bit=eight,
        load_in_4bit=not eight,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _decoding(model: Any, tokenizer: Any, settings: ChatSettings) -> Any:
    """All of it is stated; nothing is left to the model's own generation_config but where answers end."""
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id
    known = tokenizer.get_vocab()
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    ends |= {known[end] for end in _ENDS if end in known}
    ends.discard(None)
    if not ends:
        raise ModelError("the model names no token that ends an answer.", _HINT)
    pad = tokenizer.pad_token_id
    sampled = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        do_sample=settings.temperature > 0,
        **(sampled if settings.temperature > 0 else {}),
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends) if pad is None else pad,
    )


def _special(tokenizer: Any) -> tuple[str, ...]:
    """Tokens that would be read as control even where they stand in a passage."""
    added = (str(token) for token in tokenizer.get_added_vocab())
    named = {*tokenizer.all_special_tokens, *(token for token in added if token[:1] in "<[")}
    return tuple(sorted(token for token in named if len(token.strip()) > 1))


@contextlib.contextmanager
def _load_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any class: damaged weights and tokenizers have errors of their own
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"the model in {folder} cannot be loaded: {why}.", _HINT) from error
