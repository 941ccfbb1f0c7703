from __future__ import annotations

import gc
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from object_store import bucket, s3  # noqa: F401 - fixtures
from server.workspaces import make_workspace  # noqa: F401 - a fixture
from stores.servers import memory_folder, pinecone, postgres  # noqa: F401 - fixtures

# The files that take longest, the longest first, so that both processes of `make test` end together.
LONGEST = (
    "test_pipeline",
    "test_crew",
    "test_docs",
    "test_fit_training",
    "test_train",
    "test_examples_first",
    "test_objectives",
    "test_cli",
    "test_build",
    "test_kill",
    "test_loop",
    "test_contract",
    "test_openai",
    "test_corpora",
    "test_examples_second",
    "test_browser",
    "test_growth",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {stem: place for place, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


# Before any test imports a library that reads them: no network, no more threads than cores, and none to read
# the weights of a tiny model.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

# Most of what is alive are the loaded libraries, which the collector would look through again and again.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """No waiting for the disk: no test cuts the power, and a killed process loses nothing it has written."""
    with mock.patch.object(os, "fsync"):
        yield


TOPICS = {
    "garden": "rose soil compost seedling hedge orchard pruning tulip mulch greenhouse blossom irrigation",
    "kitchen": "oven dough saffron skillet roast simmer garlic pastry risotto broth marinade whisk",
    "sailing": "anchor harbour mast keel tide rudder regatta compass buoy spinnaker hull jetty",
    "music": "violin sonata tempo chord orchestra rehearsal cello melody soloist overture bow choir",
    "mountain": "glacier summit ridge crampon avalanche hut trail boulder altitude rope valley cairn",
    "railway": "locomotive signal platform carriage timetable junction tunnel freight sleeper depot viaduct",
}
FRAMES = (
    "The {0} and the {1} were checked before anybody touched the {2} again.",
    "Our guide to the {0} explains why a {1} near the {2} needs so much patience.",
    "Nobody had expected that the old {0} would outlast both the {1} and the {2}.",
    "Visitors who ask for the {0} are usually shown the {1} behind the {2} first.",
    "In spring the {0} is repaired, while the {1} has to wait until the {2} is ready.",
)


@dataclass(frozen=True)
class Doc:
    """A document of the made-up corpus."""

    id: str
    title: str
    text: str
    price: int
    place: str | None


def _document(rng: random.Random, number: int) -> Doc:
    topic = list(TOPICS)[number % len(TOPICS)]
    words = TOPICS[topic].split()
    many = 30 if number == 7 else rng.randint(1, 5)
    lines = [rng.choice(FRAMES).format(*rng.sample(words, 3)) for _ in range(many)]
    place = rng.choice(["Zaragoza", "Huesca", "Teruel", None])
    return Doc(f"{topic}-{number}", f"{topic} notes {number}", " ".join(lines), rng.randint(1, 99), place)


@pytest.fixture(scope="session")
def corpus() -> list[Doc]:
    """72 short documents on six topics, one of them long enough for several passages."""
    rng = random.Random(5)
    return [_document(rng, number) for number in range(72)]


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    """The word pieces of the tiny model: whole words of the corpus, letters for all others."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = {word for frame in FRAMES for word in frame.lower().replace(".", "").replace(",", "").split()}
    words |= {word for topic in TOPICS.values() for word in topic.split()} | {*TOPICS, "notes", "query"}
    whole = sorted(word for word in words if "{" not in word and len(word) > 1)
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *whole]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]) -> Path:
    """A BERT of two layers and 32 dimensions with a window of 96 tokens, in the layout of the hub."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"])
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=96,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder / "bert")
    torch.manual_seed(1)
    # The wide initialisation keeps texts of different words apart; the usual one makes all vectors alike.
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=96)
    modules = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(
        str(folder / "model"), create_model_card=False
    )
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A cross-encoder of random weights with one output and the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.4,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Its event loop runs as long as it is open, and no other may meanwhile."""
    chromium = Path("/usr/bin/chromium")
    if not chromium.is_file():
        pytest.skip("there is no chromium here")
    driver = pytest.importorskip("playwright.sync_api", reason="there is no playwright here")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with driver.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=str(chromium), args=[*quiet, "--disable-sync", "--no-first-run"]
        )
        yield running
        running.close()


@dataclass
class Bench:
    """Runs single stages in the pipeline's order over one folder, each at most once."""

    folder: Path
    settings: Any
    results: dict[str, Any] = field(default_factory=dict)

    def inputs(self, stage: str) -> dict[str, Path]:
        """The artefacts that a stage reads, after the stages before it have run."""
        from searchfit.recipe import STAGES

        for earlier in STAGES:
            if earlier.name == stage:
                return {name: self.folder / name for name in earlier.reads}
            self.run(earlier.name)
        raise LookupError(stage)

    def run(self, stage: str) -> Any:
        """The stage's result."""
        from searchfit.recipe import STAGES
        from searchfit.stages import Tools

        if stage not in self.results:
            inputs = self.inputs(stage)
            entry = next(entry for entry in STAGES if entry.name == stage)
            view = self.settings.only(*entry.sections)
            self.results[stage] = entry.module.run(view, inputs, Tools(self.folder, "v1"))
        return self.results[stage]

    def path(self, name: str) -> Path:
        """An artefact, made when it is not there yet."""
        from searchfit.recipe import STAGES

        self.run(next(stage.name for stage in STAGES if name in stage.names("v1")))
        return self.folder / name


@pytest.fixture(scope="session")
def small_settings(tmp_path_factory: pytest.TempPathFactory, corpus: list[Doc], tiny_model: Path) -> Any:
    """Settings of a fit of the made-up corpus that takes seconds."""
    from searchfit.config import load_settings

    source = tmp_path_factory.mktemp("source") / "corpus.jsonl"
    source.write_text("".join(json.dumps(vars(doc)) + "\n" for doc in corpus), encoding="utf-8")
    values = {
        "source.source": str(source),
        "source.text": ("text",),
        "source.id": "id",
        "source.title": "title",
        "model.name": str(tiny_model),
        "model.precision": "fp32",
        "split.max_chars": 300,
        "train.min_queries": 8,
        "train.batch_size": 16,
        "mine.candidates": 12,
        "mine.negatives": 20,
        "train.learning_rate": 1e-3,
        "choose.permutations": 200,
        "choose.bootstrap": 100,
        # A model of random weights knows nothing, and keywords would outweigh all else.
        "engine.adapt": False,
    }
    return load_settings(values=values)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, small_settings: Any) -> Bench:
    """The made-up corpus on its way through the stages; shared, so tests only read from it."""
    return Bench(tmp_path_factory.mktemp("bench"), small_settings)
