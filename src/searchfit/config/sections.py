"""The settings of each stage after reading, a frozen class each, with their defaults and what they mean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from searchfit.config.base import Section


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


class ExecutorSettings(Section):
    """Where batches are generated, encoded and scored. Nothing that is made depends on it."""

    name: Literal["local", "ray"] = Field("local", description="this process, or actors on a Ray cluster")
    address: str = Field("auto", description='of the Ray cluster, HOST:PORT; "auto": the one of this machine')
    actors: int = Field(0, ge=0, description="each with a model of its own; 0: as many as have a place")
    cpus: float = Field(1.0, gt=0, description="processors of an actor")
    gpus: float = Field(0.0, ge=0, description="of an actor; 0.5: two share one")
    in_flight: int = Field(2, ge=1, description="batches that an actor has or waits with, at most")
    patience: PositiveFloat = Field(600.0, description="seconds to wait for a first actor to start")


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
    legs: Literal["dense", "keyword", "both"] = Field(
        "both", description="what the teacher looks queries up by; keyword reads no vectors"
    )
    top_k: int = Field(20, ge=1, description="the teacher must find the own document among its first k")
    small_corpus: int = Field(2000, ge=0, description="with fewer documents k grows; 0: never")
    generic_ties: int = Field(24, ge=1, description="dropped when this many passages answer equally well")
    generic_margin: float = Field(0.02, ge=0, description="scores this close to the best are equally good")
    reranker: str = Field("", description="cross-encoder, a folder or a hub id, that reads query and passage")
    reranker_min: float = Field(0.1, ge=0, le=1, description="pairs that it scores lower (0..1) are dropped")


class HoldoutSettings(Section):
    """How documents are divided into train, dev and test."""

    dev: float = Field(
        0.1, gt=0, lt=0.5, description="share of documents, and of labelled questions, for choosing"
    )
    test: float = Field(
        0.1, gt=0, lt=0.5, description="share of documents, and of labelled questions, for the report"
    )
    near_duplicate: float = Field(0.7, gt=0, le=1, description="Jaccard similarity of word shingles")
    judge: str = Field(
        "auto",
        description="generator whose questions are dev and test, while those of the others train; "
        "auto: the last of several; any: no such rule",
    )


class MineSettings(Section):
    """What each training query learns from."""

    max_queries: int = Field(4000, ge=1, description="queries to train on, sampled evenly over the styles")
    teacher: str = Field(
        "blend", description="blend, cross-encoder:MODEL, bi-encoder:MODEL, or several joined by +"
    )
    force_teacher: bool = Field(False, description="use it even if it is no better than the student on dev")
    candidates: int = Field(128, ge=2, description="passages by query, from the top of the teacher's ranking")
    negatives: int = Field(1024, ge=0, description="random passages beside the candidates, for all queries")
    label_margin: float = Field(0.1, ge=0, description="by how much a labelled answer leads the scores")
    hard: int = Field(2, ge=1, description="negatives of each query, for objectives that take them")
    legs: Literal["dense", "keyword", "both"] = Field("both", description="the ranking that they come from")
    skip: int = Field(0, ge=0, description="the first ranks are left out")
    depth: int = Field(64, ge=1, description="the last rank that counts")
    absolute_margin: float = Field(0.0, description="negatives score this much below the positive")
    relative_margin: float = Field(0.05, description="the same as a share of the positive's score")
    guard: float = Field(0.0, description="nor does the teacher score them within this of the positive")
    sampling: Literal["top", "random"] = Field("random", description="the best of the ranks, or any of them")
    random_share: float = Field(0.0, ge=0, le=1, description="share of negatives drawn from the whole corpus")


class TrainSettings(Section):
    """Tuning on the queries. What is trained, on which objective, and how the steps are taken."""

    enabled: bool = Field(True, description="false keeps the untuned model")
    towers: Literal["query", "shared", "separate"] = Field(
        "query", description="query: passages stay as they are; shared: one model for both; separate: two"
    )
    objective: str = Field(
        "distill",
        description="distill, mnr, mnr-cached, mnr-symmetric, margin-mse, triplet, contrastive, "
        "online-contrastive, cosine; several with commas",
    )
    weights: tuple[float, ...] = Field((), description="share of the batches by objective; empty: by size")
    data: Literal["all", "generated", "labelled"] = Field("all", description="which queries to train on")
    min_queries: int = Field(64, ge=1, description="with fewer, nothing is trained")
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=2)
    accumulate: int = Field(1, ge=1, description="batches a step")
    learning_rate: float = Field(0.0, ge=0, description="0: 1e-4 for the query tower, 2e-5 for both")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of steps over which the rate rises")
    schedule: Literal["linear", "constant", "cosine"] = Field("linear", description="of the learning rate")
    temperature: float = Field(0.05, gt=0, description="of the teacher's and the student's softmax")
    margin: float = Field(0.5, gt=0, description="of contrastive and triplet objectives")
    distance: Literal["cosine", "euclidean"] = Field("cosine", description="of contrastive objectives")
    matryoshka: tuple[int, ...] = Field((), description="shorter lengths at which vectors are trained too")
    lora_rank: int = Field(0, ge=0, description="train adapters of this rank, merged in the end; 0: none")
    freeze_embeddings: bool = Field(False, description="leave the word embeddings as they are")
    checkpoint_steps: int = Field(25, ge=1, description="a killed run loses at most this many steps")
    measure_steps: int = Field(0, ge=0, description="score on dev so often and keep the best; 0: by epoch")
    patience: int = Field(0, ge=0, description="stop after so many scores without a better one; 0: never")
    dev_queries: int = Field(500, ge=1, description="dev questions of such a score")
    dev_passages: int = Field(1000, ge=10, description="passages ranked for it, where passages are tuned too")
    report_to: tuple[str, ...] = Field((), description="tensorboard, wandb, mlflow")


class ReencodeSettings(Section):
    """Which mixtures compete where passages were tuned too."""

    merges: tuple[float, ...] = Field(
        (0.5,), description="shares of the tuned weights; each costs an encoding of the corpus"
    )


class EngineSettings(Section):
    """How search scores. The defaults are the safest found over real collections, see docs/lab.md."""

    units: Literal["passage", "sentence", "both"] = Field("both", description="what is encoded")
    keyword_weight: float = Field(0.5, ge=0, description="weight of the keyword leg beside the dense one")
    blend_weight: float = Field(
        1.0, ge=0, description="weight of the keyword leg where no words are looked at"
    )
    adapt: bool = Field(
        True,
        description="raise both where keywords find what the model does not, measured on the corpus, and "
        "weigh the legs as 20 or more judged dev questions prefer",
    )
    token_weight: float = Field(
        2.0, ge=0, description="weight of late interaction, word by word, where the model allows it; 0: none"
    )
    token_depth: int = Field(40, ge=1, le=1000, description="results whose words are looked at")
    fusion: Literal["scores", "rrf"] = Field(
        "scores", description="what is summed over the legs: scores, or reciprocal ranks"
    )


class RerankSettings(Section):
    """A cross-encoder that reads the best results again; used where it is better for sure."""

    model: str = Field("", description="cross-encoder, a folder or a hub id, that competes; empty: none")
    depth: int = Field(20, ge=2, le=1000, description="results that are read again for each query")
    weights: tuple[PositiveFloat, ...] = Field(
        (0.5, 2.0), min_length=1, description="of its scores beside the first ones; each competes"
    )
    max_queries: int = Field(
        300, ge=10, description="dev and test questions, each, that all are compared on when one competes"
    )


class RerankTrainingSettings(Section):
    """How `searchfit train-reranker` fits one."""

    base: str = Field("minilm", description="an encoder, which gets a new head, or a cross-encoder")
    objective: Literal["listwise", "bce", "margin-mse"] = Field(
        "listwise", description="listwise: the own passage against its negatives; margin-mse: as the teacher"
    )
    max_queries: int = Field(2000, ge=1, description="training queries, sampled evenly")
    negatives: int = Field(4, ge=1, description="of each query in each epoch, from the teacher's ranking")
    depth: int = Field(30, ge=1, description="the last rank that they come from")
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(8, ge=1, description="queries a step, each with its own passage and negatives")
    learning_rate: float = Field(3e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of steps over which the rate rises")
    checkpoint_steps: int = Field(25, ge=1, description="a killed run loses at most this many steps")
    measures: int = Field(2, ge=1, description="how often it is scored on dev; the best weights are kept")
    dev_queries: int = Field(50, ge=1, description="dev questions of such a score")


class EvaluateSettings(Section):
    """How the candidates are compared."""

    keyword_weights: tuple[float, ...] = Field((0.5, 1.0, 1.5), description="blends shown in the report")
    merges: tuple[float, ...] = Field((0.25, 0.5, 0.75), description="shares of the tuned weights")
    min_labelled: int = Field(
        30, ge=1, description="with as many held-out labelled questions each for dev and test, they judge"
    )
    max_queries: int = Field(2000, ge=10, description="dev and test queries, each, sampled evenly")
    metrics: tuple[str, ...] = Field(
        (), description="more of them, beside those that are always there: precision@5, hit@3, map@100 ..."
    )
    whiten: bool = Field(True, description="compare whitened vectors, a baseline that nothing is trained for")
    models: tuple[str, ...] = Field(
        (), description="other models to compare, folders or hub ids; each encodes the corpus once"
    )
    runs: tuple[str, ...] = Field(
        (), description="TREC run files of other engines on your judged questions, to compare"
    )
    leak_share: float = Field(
        0.6, gt=0, le=1, description="share of a held-out passage's word runs in one training text: a leak"
    )


class ChooseSettings(Section):
    """When a gain counts."""

    alpha: float = Field(0.05, gt=0, lt=1, description="p-value below which a gain on dev counts")
    proof: float = Field(
        1.25,
        ge=0,
        description="without judged questions, tuned passages, and a tuned model beside words, have to find "
        "what is left of passages without the sentences that were asked for so many times as well as untuned",
    )
    permutations: int = Field(10_000, ge=100)
    bootstrap: int = Field(2_000, ge=100)


class IndexSettings(Section):
    """How the index is laid out, and how deep search reads it."""

    exact_passages: int = Field(
        100_000, ge=1000, description="with more passages, an approximate index of their vectors is built"
    )
    recall: float = Field(
        0.98, gt=0.5, lt=1, description="share of the true ten nearest that it has to find, measured"
    )
    exact_sentences: int = Field(
        200_000, ge=0, description="with more sentences, only those of passages that were found are compared"
    )
    candidates: int = Field(200, ge=10, description="passages that each leg then gives")
    merge: int = Field(8, ge=2, description="small segments that additions leave before they are merged")
