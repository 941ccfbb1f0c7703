"""Settings: one frozen class a stage, read from TOML and from `--set section.key=value`.

An unknown key is an error that names the keys there are. The resolved settings are written to the
workspace as searchfit.toml, and each stage is keyed by the sections that it reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from searchfit.errors import SettingsError
from searchfit.toml import read_toml, toml_or_text, toml_value


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        # Names of files may hold bytes that are not UTF-8; searchfit.toml could not.
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str) and any("\ud800" <= char <= "\udfff" for char in item):
                raise ValueError("it holds bytes that are not UTF-8")
        return value


class SourceSettings(Section):
    """What is read. Column names are only needed where they cannot be told from the data."""

    source: str = Field("", description="file, folder or scheme:..., for example pydoc:json,email")
    text: tuple[str, ...] = Field((), description="column(s) that hold the text, joined by blank lines")
    id: str = Field("", description="column that holds the document id")
    title: str = Field("", description="column that holds the title")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="share of bad rows above which reading fails")
    max_text_chars: int = Field(5_000_000, ge=1, description="longer texts count as bad rows")


class QueriesSettings(Section):
    """The user's own questions, used for evaluation in preference to generated ones."""

    file: str = Field("", description="questions: .txt, .csv, .tsv, .jsonl, or a BEIR folder with judgements")
    split: str = Field("test", description="which qrels of a BEIR folder to use")


class PairsSettings(Section):
    """Labelled pairs. Column names are only needed where they cannot be told from the data."""

    file: str = Field(
        "", description="pairs: .csv, .tsv, .jsonl, .parquet, a folder of those, or a BEIR folder"
    )
    query: tuple[str, ...] = Field((), description="column(s) of the query, joined by a space")
    passage: str = Field("", description="column of the text that answers, or not, see label")
    label: str = Field("", description="column of the label: 1 answers, 0 does not; or graded")
    negatives: tuple[str, ...] = Field((), description="column(s) of texts that do not answer")
    split: str = Field("train", description="which qrels of a BEIR folder, or SPLIT.* of a folder, to use")


class SplitSettings(Section):
    """How documents become passages."""

    max_chars: int = Field(1024, ge=64, description="longer texts are cut at sentence borders")
    overlap_chars: int = Field(160, ge=0, description="characters of the last sentences repeated in the next")
    min_sentence_words: int = Field(8, ge=1, description="shorter sentences are joined with a neighbour")


class ModelSettings(Section):
    """The embedding model."""

    name: str = Field("minilm", description='built-in "minilm", a model folder, or a hub id')
    query_prompt: str = Field("", description="text put before every query")
    document_prompt: str = Field("", description="text put before every passage")
    pooling: Literal["", "mean", "cls", "max", "weightedmean"] = Field(
        "", description="how tokens become one vector; empty: the model's own way, mean for a raw encoder"
    )
    head_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout after pooling, in training; 0: as it is"
    )
    head_dim: int = Field(0, ge=0, description="a linear layer to so many dimensions; 0: as it is")
    normalize: bool | Literal["auto"] = Field(
        "auto", description="whether the model itself ends in unit vectors; auto: as it is"
    )
    similarity: Literal["auto", "cosine", "dot"] = Field(
        "auto", description="how vectors are compared; auto: what the model says, else cosine"
    )
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1", "mps"')
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where it is fast")


class PretrainSettings(Section):
    """Adapting the encoder to the passages before tuning, without any query."""

    objective: Literal["none", "tsdae", "mlm"] = Field(
        "none", description="tsdae: denoising auto-encoder; mlm: masked language model"
    )
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(8, ge=1, description="passages a step")
    learning_rate: float = Field(3e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.0, ge=0, le=1, description="share of steps over which the rate rises")
    schedule: Literal["linear", "constant", "cosine"] = Field("constant", description="of the learning rate")
    deletion: float = Field(0.6, ge=0, lt=1, description="share of words that tsdae deletes")
    masked: float = Field(0.15, gt=0, lt=1, description="share of tokens that mlm hides")
    whole_words: bool = Field(False, description="mlm hides all tokens of a word together")
    checkpoint_steps: int = Field(200, ge=1, description="a killed run loses at most this many steps")


class KeywordSettings(Section):
    """BM25 and its analyser."""

    language: str = Field("auto", description='"auto" (detected), "none" (no stemming), or a language name')
    k1: float = Field(1.2, gt=0, description="term frequency saturation")
    b: float = Field(0.75, ge=0, le=1, description="length normalisation")


class GenerateSettings(Section):
    """The queries that are written for the passages, and by whom."""

    generator: str = Field(
        "phrases", description="phrases (no model), t5[:MODEL], chat:MODEL, openai:MODEL; several with commas"
    )
    shares: tuple[float, ...] = Field((), description="share of the passages by generator; empty: even")
    per_passage: int = Field(
        0, ge=0, le=50, description="queries for each passage; 0: 3 (phrases, t5) or 5 (chat, openai)"
    )
    max_queries: int = Field(6000, ge=1, description="passages are sampled evenly above this many queries")
    max_cost: float = Field(0.0, ge=0, description="stop before this much is spent, all runs; 0: no limit")
    part_passages: int = Field(1000, ge=1, description="passages a part file")


class T5Settings(Section):
    """Encoder-decoder query generators (GenQ)."""

    engine: Literal["auto", "transformers", "ctranslate2"] = Field(
        "auto", description="auto: transformers on a GPU, ctranslate2 (int8) on a CPU where it is installed"
    )
    decoding: Literal["sample", "beam", "greedy"] = Field("sample", description="greedy writes one query")
    top_p: float = Field(0.95, gt=0, le=1, description="of sampling")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    beams: int = Field(4, ge=1, description="of beam search, at least as many as queries a passage")
    max_new_tokens: int = Field(64, ge=1, description="longest query")
    max_input_tokens: int = Field(512, ge=8, description="longer passages are cut")
    prefix: str = Field("", description="text put before every passage, for models that ask for one")
    batch_tokens: int = Field(0, ge=0, description="padded tokens a batch; 0: by device")
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1", "mps"')


class PromptSettings(Section):
    """What language models (chat, openai) are asked."""

    styles: tuple[str, ...] = Field(
        ("question", "keywords", "question", "claim", "conversational"),
        description="styles of the queries, in turn: question, keywords, claim, title, conversational",
    )
    language: str = Field("auto", description='"auto": that of the passage; or a name, for example "French"')
    template: str = Field("", description="file with a template of your own instead of the built-in one")
    examples: str = Field("", description="file with questions of your users, shown to the model as examples")
    max_examples: int = Field(5, ge=0, le=50, description="questions shown, sampled")


class ChatSettings(Section):
    """Local language models."""

    temperature: float = Field(0.7, ge=0, description="0: greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(320, ge=1, description="for all queries of a passage together")
    batch_tokens: int = Field(0, ge=0, description="padded tokens a batch; 0: by device")
    quantization: Literal["none", "8bit", "4bit"] = Field("none", description="on a GPU, by bitsandbytes")
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1", "mps"')
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where it is fast")


class OpenAISettings(Section):
    """Servers with OpenAI's chat API: vLLM, Ollama, llama.cpp, TGI, hosted ones."""

    base_url: str = Field("", description="http://127.0.0.1:11434/v1, say; empty: the client's own")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    answers: Literal["auto", "schema", "json", "lines"] = Field(
        "auto", description="how answers are asked for; auto: JSON schema, JSON, lines, what the server takes"
    )
    temperature: float = Field(0.7, ge=0)
    max_new_tokens: int = Field(320, ge=1, description="for all queries of a passage together")
    concurrency: int = Field(8, ge=1, le=1024, description="requests in flight")
    timeout: float = Field(60.0, gt=0, description="seconds for one request")
    attempts: int = Field(5, ge=1, description="requests for one passage before it is set aside")
    backoff: float = Field(1.0, ge=0, description="seconds before the second attempt, then doubled")
    price_input: float = Field(0.0, ge=0, description="price of a million tokens read")
    price_output: float = Field(0.0, ge=0, description="price of a million tokens written")


class ScreenSettings(Section):
    """Which generated queries are kept."""

    min_chars: int = Field(6, ge=1, description="shorter queries are dropped")
    copies: Literal["auto", "keep", "drop"] = Field(
        "auto", description="queries that stand word for word in their passage; auto: dropped from models"
    )
    same_language: bool = Field(True, description="drop queries clearly in another language than the passage")
    min_overlap: int = Field(1, ge=0, description="words that a model's query shares with its passage")
    near_duplicate: float = Field(
        0.97, gt=0, le=1, description="cosine of queries that ask the same, if most words are the same too"
    )
    top_k: int = Field(20, ge=1, description="the teacher must find the own document among its first k")
    small_corpus: int = Field(2000, ge=0, description="with fewer documents k grows; 0: never")
    generic_ties: int = Field(24, ge=1, description="dropped when this many passages answer equally well")
    generic_margin: float = Field(0.02, ge=0, description="scores this close to the best are equally good")
    reranker: str = Field("", description="cross-encoder, a folder or a hub id, that reads query and passage")
    reranker_min: float = Field(0.1, ge=0, le=1, description="pairs that it scores lower (0..1) are dropped")


class HoldoutSettings(Section):
    """How documents are divided into train, dev and test."""

    dev: float = Field(0.1, gt=0, lt=0.5, description="share of documents for choosing")
    test: float = Field(0.1, gt=0, lt=0.5, description="share of documents for the report")
    near_duplicate: float = Field(0.7, gt=0, le=1, description="Jaccard similarity of word shingles")


class MineSettings(Section):
    """What each training query learns from."""

    max_queries: int = Field(4000, ge=1, description="queries to train on, sampled evenly over the styles")
    candidates: int = Field(128, ge=2, description="passages by query, from the top of the teacher's ranking")
    negatives: int = Field(1024, ge=0, description="random passages beside the candidates, for all queries")


class TrainSettings(Section):
    """Query-side tuning: passages stay as they are, the query encoder learns the teacher's ranking."""

    enabled: bool = Field(True, description="false keeps the untuned model")
    min_queries: int = Field(64, ge=1, description="with fewer, nothing is trained")
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of steps over which the rate rises")
    temperature: float = Field(0.05, gt=0, description="of the teacher's and the student's softmax")
    checkpoint_steps: int = Field(25, ge=1, description="a killed run loses at most this many steps")


class EngineSettings(Section):
    """How search scores. The defaults are the safest found over real collections, see docs/lab.md."""

    units: Literal["passage", "sentence", "both"] = Field("both", description="what is encoded")
    keyword_weight: float = Field(1.0, ge=0, description="weight of the keyword leg beside the dense one")


class EvaluateSettings(Section):
    """How the candidates are compared."""

    keyword_weights: tuple[float, ...] = Field((0.5, 1.0, 1.5), description="blends shown in the report")
    merges: tuple[float, ...] = Field((0.25, 0.5, 0.75), description="shares of the tuned weights")
    max_queries: int = Field(2000, ge=10, description="dev and test queries, each, sampled evenly")


class ChooseSettings(Section):
    """When a gain counts."""

    alpha: float = Field(0.05, gt=0, lt=1, description="p-value below which a gain on dev counts")
    permutations: int = Field(10_000, ge=100)
    bootstrap: int = Field(2_000, ge=100)


class Settings(Section):
    """All settings of a fit."""

    seed: int = 13
    source: SourceSettings = SourceSettings()
    queries: QueriesSettings = QueriesSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    keyword: KeywordSettings = KeywordSettings()
    generate: GenerateSettings = GenerateSettings()
    t5: T5Settings = T5Settings()
    prompt: PromptSettings = PromptSettings()
    chat: ChatSettings = ChatSettings()
    openai: OpenAISettings = OpenAISettings()
    screen: ScreenSettings = ScreenSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    mine: MineSettings = MineSettings()
    train: TrainSettings = TrainSettings()
    engine: EngineSettings = EngineSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    choose: ChooseSettings = ChooseSettings()

    def only(self, *sections: str) -> Settings:
        """A copy that holds just these sections; reading another one raises AttributeError."""
        view = Settings.model_construct()
        kept = {name: getattr(self, name) for name in sections}
        view.__dict__.clear()
        view.__dict__.update(kept)
        return view


def load_settings(
    file: Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    base: Settings | None = None,
) -> Settings:
    """Settings from, in rising precedence: `base`, a TOML file, `section.key=value` strings, and `values`
    (a mapping of "section.key" to value).

    Raises SettingsError for a file that is absent or is not TOML, an unknown key or a wrong value.
    """
    tree: dict[str, Any] = (base or Settings()).model_dump()
    if file is not None:
        _merge(tree, read_toml(file), "")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text!r} has no '='.", "Write it as --set section.key=value.")
        _assign(tree, key.strip(), toml_or_text(value.strip()))
    for key, value in (values or {}).items():
        _assign(tree, key, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"setting {key}: {first['msg']}, got {first['input']!r}.") from error


def _merge(tree: dict[str, Any], new: Mapping[str, Any], prefix: str) -> None:
    for key, value in new.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if not isinstance(tree.get(key), dict):
                raise _unknown(".".join([path, *list(value)[:1]]))
            _merge(tree[key], value, f"{path}.")
        elif key not in tree or isinstance(tree[key], dict):
            raise _unknown(path)
        else:
            tree[key] = value


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    nested: dict[str, Any] = {section: {name: value}} if dot else {section: value}
    _merge(tree, nested, "")


def _unknown(path: str) -> SettingsError:
    known = known_keys()
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    section = path.partition(".")[0]
    there = near or [key for key in known if key.startswith(f"{section}.")] or known
    return SettingsError(f"unknown setting {path!r}.", f"Did you mean: {', '.join(there)}?")


def known_keys() -> list[str]:
    """Every setting as section.key."""
    keys = []
    for name, value in Settings().model_dump().items():
        keys += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return keys


def to_toml(settings: Settings) -> str:
    """The settings as TOML text that `load_settings` reads back equal."""
    lines = []
    sections = []
    for name, value in settings.model_dump().items():
        if isinstance(value, dict):
            rows = "".join(f"{key} = {toml_value(item)}\n" for key, item in value.items())
            sections.append(f"[{name}]\n{rows}")
        else:
            lines.append(f"{name} = {toml_value(value)}\n")
    return "".join(lines) + "\n" + "\n".join(sections)
