from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from searchfit import encoders
from searchfit.config import load_settings
from searchfit.encoders import locate
from searchfit.errors import MissingExtraError, ModelError, SettingsError
from searchfit.generators import DEFAULT_T5, Part, Task, Written, load_generator
from searchfit.generators.t5 import T5Generator
from searchfit.generators.t5_convert import converted
from searchfit.generators.t5_engines import (
    CTranslate2Engine,
    Decoding,
    TransformersEngine,
    draw,
    load_tokenizer,
)
from searchfit.records import Passage

ENGINES = ("transformers", "ctranslate2")
TEXT = (
    "the a of and in to for with was hops beer yeast lager brew citrus oil crisis train city office "
    "price stream encoder object keys type output file chunk cone acid aroma tank weeks bottle cellar "
    "what how why when which is are does where who it high low old new first last many few "
)
WORDS = TEXT.split()


def save_model(folder: Path, seed: int, **changes: Any) -> Path:
    """A T5 of two layers and 16 dimensions over a vocabulary of words, as the hub lays it out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        **{
            "vocab_size": len(vocabulary) + 6,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "initializer_factor": 3.0,
            **changes,
        }
    )
    model = T5ForConditionalGeneration(config)
    # As on the hub: a file that would change the sampling of anybody who does not say otherwise.
    model.generation_config.top_k = 1
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("t5") / "tiny", 1)


def passages(count: int = 30) -> list[Passage]:
    rng = np.random.default_rng(7)
    rows = [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 60)))) for _ in range(count)]
    return [Passage(f"p{n}", "d", 0, "hops" * (n % 2), text, 0, len(text), ()) for n, text in enumerate(rows)]


def generator(model: Path, per_passage: int = 3, seed: int = 13, **options: Any) -> T5Generator:
    values = {"max_new_tokens": 8, "batch_tokens": 400, "device": "cpu"} | options
    settings = load_settings(values={f"t5.{key}": value for key, value in values.items()} | {"seed": seed})
    made = load_generator(Part("t5", str(model), 1.0), settings, None)  # type: ignore[arg-type]
    assert isinstance(made, T5Generator)
    return made if per_passage == 3 else T5Generator("t5", str(model), per_passage, settings)


def write(made: T5Generator, tasks: Sequence[Task]) -> dict[str, Written]:
    return {written.passage.id: written for group in made.write(iter(tasks)) for written in group}


@pytest.mark.parametrize("decoding", ["sample", "beam", "greedy"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_passage_is_answered(model: Path, engine: str, decoding: str) -> None:
    made = generator(model, engine=engine, decoding=decoding)
    done = write(made, [Task(passage) for passage in passages()])
    assert sorted(done) == sorted(passage.id for passage in passages())
    assert made.per_passage == (1 if decoding == "greedy" else 3)
    queries = [text for written in done.values() for text, style in written.queries if style == "question"]
    assert len(queries) > len(done) * made.per_passage * 0.7
    for written in done.values():
        texts = [text for text, _ in written.queries]
        assert bool(texts) != bool(written.fault)
        assert len(set(texts)) == len(texts) <= made.per_passage
        assert all(
            text and text == " ".join(text.split()) and "<" not in text
            for text in texts
            if "<unk>" not in text
        )
        assert all(len(text.split()) <= 8 for text in texts)
        assert written.tokens_in > 3
        assert written.tokens_out <= 8 * made.per_passage


@pytest.mark.parametrize("decoding", ["sample", "beam"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_killed_carries_on_with_the_same_queries(
    model: Path, engine: str, decoding: str
) -> None:
    rows = passages(40)
    whole = [
        list(group) for group in generator(model, engine=engine, decoding=decoding).write(map(Task, rows))
    ]
    assert len(whole) > 5
    committed = {written.passage.id: written for group in whole[:3] for written in group}
    rest = write(
        generator(model, engine=engine, decoding=decoding),
        [Task(passage, known=passage.id in committed) for passage in rows],
    )
    assert not set(rest) & set(committed)
    assert committed | rest == {written.passage.id: written for group in whole for written in group}


def test_transformers_writes_for_a_passage_what_follows_from_it_alone(model: Path) -> None:
    rows = passages(24)
    together = write(generator(model, engine="transformers", batch_tokens=4000), list(map(Task, rows)))
    alone = write(generator(model, engine="transformers", batch_tokens=1), list(map(Task, reversed(rows))))
    assert together == alone


@pytest.mark.parametrize("engine", ENGINES)
def test_another_seed_draws_other_queries(model: Path, engine: str) -> None:
    tasks = list(map(Task, passages(8)))
    makers = (generator(model, engine=engine, seed=seed, temperature=5.0) for seed in (13, 13, 14))
    first, again, other = (write(made, tasks) for made in makers)
    assert first == again
    assert sum(first[id_].queries != other[id_].queries for id_ in first) >= 7
    assert len({query for written in first.values() for query in written.queries}) > 12


def test_greedy_is_the_same_in_both_engines_and_by_hand(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    rows = tokenizer([passage.encoded_text for passage in passages(12)])["input_ids"]
    how = Decoding("greedy", 1, 1, 8, 1.0, 1.0)
    theirs = CTranslate2Engine(model, tokenizer, "float32").generate(rows, how, 1)
    ours = TransformersEngine(model, "cpu")
    by_hand = []
    for row in rows:
        tokens = [0]
        with torch.inference_mode():
            while len(tokens) <= 8 and tokens[-1] != 1:
                out = ours.model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([tokens]))
                tokens.append(int(out.logits[0, -1].argmax()))
        by_hand.append([[token for token in tokens[1:] if token != 1]])
    assert ours.generate(rows, how, 1) == by_hand
    # The network has more outputs than there are words; CTranslate2 gives them no number of their own.
    assert theirs == [[[token if token < len(tokenizer) else 2 for token in row[0]]] for row in by_hand]
    assert len({tuple(answer[0]) for answer in by_hand}) > 3


def test_beam_search_is_at_least_as_wide_as_the_number_of_queries(model: Path) -> None:
    made = generator(model, per_passage=6, decoding="beam", engine="transformers", beams=2)
    assert made.decoding.beams == 6
    done = write(made, list(map(Task, passages(5))))
    assert max(len(written.queries) for written in done.values()) == 6


def test_draw_keeps_to_the_nucleus_and_its_shares() -> None:
    shares = torch.tensor([0.02, 0.5, 0.08, 0.3, 0.1])
    chances = (torch.arange(1000) + 0.5) / 1000
    drawn = draw(shares.log().expand(1000, -1), chances, 0.85)
    counts = torch.bincount(drawn, minlength=5)
    # 0.5 + 0.3 do not reach 0.85, with 0.1 they do: the rest is cut and the three share the whole.
    expected = torch.tensor([0, 0.5, 0, 0.3, 0.1]) / 0.9 * 1000
    assert torch.allclose(counts.float(), expected, atol=1.0)
    assert draw(shares.log()[None], torch.ones(1), 1.0).item() == 0
    assert set(draw(shares.log().expand(1000, -1), chances, 0.3).tolist()) == {1}


SOFT = 20.0  # the temperature at which the tiny model is in doubt


@pytest.mark.parametrize("engine", ENGINES)
def test_sampling_has_the_shares_of_the_model(model: Path, engine: str) -> None:
    """The first tokens of many draws against the softmax; top_p leaves out the unlikely ones."""
    tokenizer = load_tokenizer(model)
    row = tokenizer("what is citrus beer")["input_ids"]
    made = (
        CTranslate2Engine(model, tokenizer, "float32")
        if engine == "ctranslate2"
        else TransformersEngine(model, "cpu")
    )
    answers = made.generate([row], Decoding("sample", 3000, 1, 1, 0.6, SOFT), 5)[0]
    first = [answer[0] if answer else 1 for answer in answers]
    with torch.inference_mode():
        net = TransformersEngine(model, "cpu").model
        logits = (
            net(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([[0]])).logits[0, -1] / SOFT
        )
    shares, order = torch.softmax(logits, -1).sort(descending=True)
    size = int((shares.cumsum(0) - shares < 0.6).sum())
    nucleus = torch.zeros_like(shares).scatter_(0, order[:size], shares[:size] / shares[:size].sum())
    expected = nucleus[: len(tokenizer)].numpy()
    expected[2] += float(nucleus[len(tokenizer) :].sum())  # as in the test of greedy decoding
    counts = np.bincount([token if token < len(tokenizer) else 2 for token in first], minlength=len(expected))
    assert 5 < size < len(expected)
    assert counts[expected == 0].sum() == 0
    assert np.abs(counts / 3000 - expected).max() < 0.03


def test_out_of_memory_halves_the_batch_and_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = list(map(Task, passages(20)))
    expected = write(generator(model, engine="transformers"), tasks)
    real = TransformersEngine.generate
    sizes = []

    def small(self: TransformersEngine, rows: Any, decoding: Decoding, seed: int) -> Any:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return real(self, rows, decoding, seed)

    monkeypatch.setattr(TransformersEngine, "generate", small)
    assert write(generator(model, engine="transformers"), tasks) == expected
    assert max(sizes) > 4


def test_a_model_that_writes_nothing_is_a_fault(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator(model, engine="transformers")
    blank = [[[], [0, 1], [1]], [[5, 6], [5, 6], []]]
    monkeypatch.setattr(TransformersEngine, "generate", lambda *_: blank)
    first, second = made._run([made_item(made, passage) for passage in passages(2)])
    assert (first.queries, first.fault) == ((), "the model wrote nothing")
    assert (len(second.queries), second.fault) == (1, "")


def made_item(made: T5Generator, passage: Passage) -> Any:
    from searchfit.generators.batching import Item

    return Item(passage, made._tokenize([passage])[0])


def test_title_and_prefix_go_with_the_passage_and_long_ones_are_cut(model: Path) -> None:
    made = generator(model, prefix="what ", max_input_tokens=8)
    passage = Passage("p", "d", 0, "oil crisis", "price " * 30, 0, 180, ())
    tokens = made.tokenizer.convert_ids_to_tokens(made._tokenize([passage])[0])
    assert tokens == ["what", "oil", "crisis", "<unk>", "price", "price", "price", "</s>"]
    assert made.content(passage) == ("oil crisis", passage.text)
    titled = Passage("p", "d", 0, "", passage.text, 0, 180, ())
    assert write(made, [Task(passage)])["p"].queries != write(made, [Task(titled)])["p"].queries


def test_the_fingerprint_follows_from_what_is_written_not_from_how_fast(model: Path, tmp_path: Path) -> None:
    plain = generator(model)
    same = (
        generator(model, batch_tokens=99, engine="transformers"),
        generator(model, beams=9),
        generator(shutil.copytree(model, tmp_path / "copy")),
    )
    assert {made.fingerprint for made in same} == {plain.fingerprint}
    other = (
        generator(model, decoding="beam"),
        generator(model, decoding="greedy"),
        generator(model, top_p=0.9),
        generator(model, temperature=0.7),
        generator(model, max_new_tokens=9),
        generator(model, max_input_tokens=99),
        generator(model, prefix="x"),
        generator(model, per_passage=4),
        generator(save_model(tmp_path / "other", 2)),
    )
    assert len({made.fingerprint for made in (plain, *other)}) == 1 + len(other)
    assert plain.details["revision"] == encoders.model_digest(str(model))
    assert "top_p=0.95" in plain.details["decoding"]
    assert plain.details["engine"] == "ctranslate2 on cpu"
    assert plain.most_cost(passages(1)[0]) == 0


def test_a_model_is_not_loaded_where_all_is_known(model: Path) -> None:
    made = generator(model)
    assert list(made.write(Task(passage, known=True) for passage in passages())) == []
    assert "engine" not in vars(made)
    assert "tokenizer" not in vars(made)


# The conversion


def tree(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_a_model_is_converted_once_and_anew_when_it_has_changed(tmp_path: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    folder = save_model(tmp_path / "model", 3)
    before = tree(folder)
    first = converted(folder, "int8")
    assert first.parent == folder.parent
    assert sorted(file.name for file in first.iterdir())[:2] == ["config.json", "model.bin"]
    assert tree(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, first.name])
    stamp = (first / "model.bin").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersConverter, "convert", lambda *_, **__: pytest.fail("converted again"))
        assert converted(folder, "int8") == first
    assert (first / "model.bin").stat().st_mtime_ns == stamp
    save_model(folder, 4)
    encoders._folder_digest.cache_clear()  # as in a new process
    second = converted(folder, "int8")
    assert second != first
    assert (second / "model.bin").read_bytes() != (first / "model.bin").read_bytes()


def test_a_conversion_that_was_killed_leaves_nothing_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctranslate2.converters import TransformersConverter

    folder = save_model(tmp_path / "model", 3)
    real = TransformersConverter.convert

    def killed(self: Any, output_dir: str, **options: Any) -> None:
        real(self, output_dir, **options)
        (Path(output_dir) / "model.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TransformersConverter, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(folder, "int8")
    assert (converted(folder, "int8") / "model.bin").stat().st_size > 1000
    assert not list(tmp_path.glob("*.tmp"))


def test_where_nothing_can_be_written_beside_the_model_the_users_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # No user, not even root, can give a name longer than 255 bytes to the converted model beside this one.
    folder = save_model(tmp_path / ("m" * 240), 3)
    path = converted(folder, "int8")
    assert path.parent == tmp_path / "cache" / "searchfit"
    assert converted(folder, "int8") == path
    assert [entry.name for entry in tmp_path.iterdir() if "ctranslate2" in entry.name] == []
    done = write(generator(folder, engine="ctranslate2"), [Task(passages(1)[0])])
    assert done["p0"].queries
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        converted(folder, "float32")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save_model(tmp_path / "models" / "model", 3)
    folder.parent.chmod(0o555)
    try:
        assert converted(folder, "int8").is_relative_to(tmp_path / "cache")
    finally:
        folder.parent.chmod(0o755)


def test_pickled_weights_beside_safe_ones_are_not_read(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", 3)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return marker.write_text, ("x",)

    torch.save(Evil(), folder / "pytorch_model.bin")
    for engine in ENGINES:
        with pytest.raises(ModelError):
            write(generator(folder, engine=engine), [Task(passages(1)[0])])
    assert not marker.exists()


# What is refused


def test_what_is_no_encoder_decoder_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"no encoder-decoder"):
        generator(tiny_model)


def test_a_damaged_model_is_a_model_error(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not weights")
    for engine in ENGINES:
        with pytest.raises(ModelError, match="damaged"):
            write(generator(folder, engine=engine), [Task(passages(1)[0])])


def test_an_engine_that_is_not_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ctranslate2" else real(name)
    )
    with pytest.raises(MissingExtraError, match=r"searchfit\[t5\]"):
        generator(model, engine="ctranslate2")
    assert generator(model).engine_name == "transformers"


def test_settings_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"t5.device is 'cuda'"):
        generator(model, engine="ctranslate2", device="cuda")
    assert generator(model, device="cuda").engine_name == "transformers"
    folder = shutil.copytree(model, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 100}), encoding="utf-8"
    )
    with pytest.raises(SettingsError, match="at most 100"):
        generator(folder)


# Revisions of the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> list[tuple[str, str | None]]:
    """A hub whose main revisions hold no safetensors weights."""
    import huggingface_hub

    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert any(Path("spiece.model").match(pattern) for pattern in allow_patterns)
        assert not any(Path("pytorch_model.bin").match(pattern) for pattern in allow_patterns)
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        return str(model if revision else tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    locate.cache_clear()
    return asked


def test_a_revision_is_asked_of_the_hub(hub: list[tuple[str, str | None]], model: Path) -> None:
    assert locate(DEFAULT_T5) == model.resolve()
    assert hub == [("BeIR/query-gen-msmarco-t5-base-v1", "refs/pr/1")]


def test_without_safetensors_the_hint_names_the_converted_copy(hub: list[tuple[str, str | None]]) -> None:
    with pytest.raises(ModelError, match="safetensors") as caught:
        locate("owner/name")
    assert "owner/name@refs/pr/1" in caught.value.hint
    assert hub == [("owner/name", None)]


def test_a_name_that_is_no_hub_id_is_refused(hub: list[tuple[str, str | None]]) -> None:
    for name in ("owner", "owner@main", "a/b/c@main", "./a@b/c"):
        with pytest.raises(ModelError, match="no such folder"):
            locate(name)
    assert hub == []
