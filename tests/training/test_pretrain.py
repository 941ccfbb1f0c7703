from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import KINDS, TEXTS, save_encoder

from searchfit.config import ModelSettings, PretrainSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import SettingsError
from searchfit.training.pretrain import Pretrained, check_pretrain, pretrain, warns

DECODERS = ("bert", "roberta")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("raw")
    made = {kind: save_encoder(kind, folder / kind) for kind in KINDS}
    return made | {
        f"{kind} {task}": save_encoder(kind, folder / f"{kind}{task}", task)
        for kind in KINDS
        for task in ("ForMaskedLM", "ForSequenceClassification")
    }


def model(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(name=str(folder), **{"precision": "fp32", **options})


def options(objective: str, **more: Any) -> PretrainSettings:
    few = {"epochs": 6, "batch_size": 16, "learning_rate": 5e-3, "checkpoint_steps": 4}
    return PretrainSettings.model_validate({"objective": objective, **few, **more})


def quiet(*_: object) -> None:
    """No progress."""


def run(encoder: SentenceEncoder, settings: PretrainSettings, folder: Path) -> Pretrained:
    return pretrain(encoder, TEXTS, settings, 7, folder, quiet)


CASES = [("tsdae", kind) for kind in (*DECODERS, "bert ForSequenceClassification", "bert ForMaskedLM")]
CASES += [("mlm", kind) for kind in (*KINDS, *(f"{kind} ForMaskedLM" for kind in KINDS))]
CASES += [("mlm", "bert ForSequenceClassification")]


@pytest.mark.parametrize(("objective", "kind"), CASES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_loss_falls_and_the_encoder_is_kept(
    raw: dict[str, Path], tmp_path: Path, objective: str, kind: str, pooling: str
) -> None:
    shape = {"pooling": pooling, "head_dim": 8, "normalize": True}
    encoder = load_encoder(model(raw[kind], **shape))
    before = encoder.encode_queries(TEXTS[:5])
    told: list[tuple[str, int, int]] = []
    done = pretrain(encoder, iter(TEXTS), options(objective), 7, tmp_path, lambda *step: told.append(step))
    losses = done.history.losses
    assert len(losses) == 18
    assert done.steps_per_epoch == 3
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert told[-1] == ("pretrain", 18, 18)
    if objective == "mlm":
        assert done.fresh_head == ("ForMaskedLM" not in kind)
    np.testing.assert_array_equal(encoder.encode_queries(TEXTS[:5]), before)  # a copy was trained
    after = done.encoder.encode_queries(TEXTS[:5])
    assert np.abs(after - before).max() > 0.01
    assert [type(m).__name__ for m in done.encoder.model] == ["Transformer", "Pooling", "Dense", "Normalize"]
    done.encoder.save(tmp_path / "saved")
    reopened = load_encoder(model(tmp_path / "saved", **shape))
    np.testing.assert_array_equal(reopened.encode_queries(TEXTS[:5]), after)
    assert not list((tmp_path / "saved").rglob("*.bin"))
    held = {name for name, _ in done.encoder.model.named_parameters()}
    assert held == {
        name for name, _ in encoder.model.named_parameters()
    }  # no decoder, no head of a language model


class Killed(Exception):
    pass


@pytest.mark.parametrize(("objective", "kind"), [("tsdae", "bert"), ("mlm", "mpnet")])
def test_killed_and_resumed_equals_undisturbed(
    raw: dict[str, Path], tmp_path: Path, objective: str, kind: str
) -> None:
    settings = options(objective, epochs=4)
    expected = run(load_encoder(model(raw[kind])), settings, tmp_path / "undisturbed")
    reached = []
    for stop in (2, 5, 9):

        def kill(_: str, step: int, __: int, stop: int = stop) -> None:
            reached.append(step)
            if step == stop:
                raise Killed

        with pytest.raises(Killed):
            pretrain(load_encoder(model(raw[kind])), TEXTS, settings, 7, tmp_path / "killed", kill)
    assert reached == [1, 2, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    done = run(load_encoder(model(raw[kind])), settings, tmp_path / "killed")
    assert done.history == expected.history
    vectors = done.encoder.encode_queries(TEXTS)
    np.testing.assert_array_equal(vectors, expected.encoder.encode_queries(TEXTS))
    other = pretrain(load_encoder(model(raw[kind])), TEXTS, settings, 8, tmp_path / "seed", quiet)
    assert other.history.losses != expected.history.losses


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_models_own_head_and_weights_are_used(
    raw: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss of a checkpoint with a head is that of transformers' own model on the same tokens."""
    import torch
    from transformers import AutoModelForMaskedLM

    from searchfit.training.unmask import Masking, mask_tokens

    folder = raw[f"{kind} ForMaskedLM"]
    encoder = load_encoder(model(folder))
    task = Masking(encoder, options("mlm"), 7)
    task.module.eval()
    plain = AutoModelForMaskedLM.from_pretrained(folder).eval()
    seen = {}

    def keep(*given: Any) -> Any:
        ids, labels = mask_tokens(*given)
        seen["ids"], seen["labels"] = torch.as_tensor(ids), torch.as_tensor(labels)
        return ids, labels

    monkeypatch.setattr("searchfit.training.unmask.mask_tokens", keep)
    loss = task.loss(list(TEXTS[:9]), np.random.default_rng(3)).item()
    with torch.no_grad():
        pad = encoder.model.tokenizer.pad_token_id
        logits = plain(input_ids=seen["ids"], attention_mask=(seen["ids"] != pad).long()).logits
    log = torch.log_softmax(logits.double(), -1).gather(-1, seen["labels"].clamp(min=0)[..., None])[..., 0]
    hidden = seen["labels"] >= 0
    assert loss == pytest.approx(float(-log[hidden].mean()), rel=1e-5)
    assert 0 < int(hidden.sum()) < hidden.numel() / 3


def test_a_decoder_sees_the_vector(raw: dict[str, Path], tmp_path: Path) -> None:
    """Trained, the decoder writes a text better from its own vector than from another text's."""
    import torch

    from searchfit.training.denoise import Denoising

    encoder = load_encoder(model(raw["bert"]))
    task = Denoising(encoder, 0.0, 7, tmp_path)
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=2e-3)
    texts = [text[:40] for text in TEXTS[:4]]
    torch.manual_seed(1)
    for step in range(80):
        optimizer.zero_grad()
        task.loss(texts, np.random.default_rng(step)).backward()
        optimizer.step()
    task.module.eval()
    sides = [task.module.encoder.preprocess(side) for side in (texts, texts[1:] + texts[:1], texts)]
    with torch.no_grad():
        own, other = (float(task.module([dict(source), dict(sides[2])], None)) for source in sides[:2])
    assert own < 0.5 * other


def test_models_that_cannot_are_refused_at_the_start(raw: dict[str, Path], tmp_path: Path) -> None:
    for kind, folder in raw.items():
        check_pretrain(model(folder), options("mlm"))
        check_pretrain(model(folder), options("none"))
        if kind.startswith(DECODERS):
            check_pretrain(model(folder), options("tsdae"))
            continue
        with pytest.raises(SettingsError, match=f"{kind.split()[0]} models cannot be the decoder") as caught:
            check_pretrain(model(folder), options("tsdae"))
        assert 'pretrain.objective = "mlm"' in caught.value.hint

    def never() -> Iterator[str]:
        raise AssertionError("the passages were read before the refusal")
        yield ""

    with pytest.raises(SettingsError, match="cannot be the decoder"):
        pretrain(load_encoder(model(raw["mpnet"])), never(), options("tsdae"), 7, tmp_path, quiet)
    with pytest.raises(SettingsError, match="no passages"):
        pretrain(load_encoder(model(raw["bert"])), ["", " \n"], options("mlm"), 7, tmp_path, quiet)


@pytest.mark.parametrize(
    ("kind", "tsdae", "mlm"),
    [
        *((kind, True, True) for kind in ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie")),
        *((kind, False, True) for kind in ("mpnet", "distilbert", "modernbert", "albert", "deberta-v2")),
        *((kind, False, False) for kind in ("bart", "t5", "gpt2", "llama", "clip")),
    ],
)
def test_architectures(tmp_path: Path, kind: str, tsdae: bool, mlm: bool) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    for objective, allowed in (("tsdae", tsdae), ("mlm", mlm)):
        if allowed:
            check_pretrain(model(tmp_path), options(objective))
            continue
        with pytest.raises(SettingsError, match=f"{kind} models") as caught:
            check_pretrain(model(tmp_path), options(objective))
        assert ('objective = "mlm"' in caught.value.hint) == mlm


def test_two_towers_and_models_without_a_transformer_are_refused(
    raw: dict[str, Path], tmp_path: Path
) -> None:
    encoder = load_encoder(model(raw["bert"]))
    encoder.with_towers({}, None, 1.0).save(tmp_path / "two")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "model.safetensors").write_bytes(b"")
    for name, said in (("two", "two towers"), ("static", "no transformer")):
        with pytest.raises(SettingsError, match=said):
            check_pretrain(model(tmp_path / name), options("mlm"))
    with pytest.raises(SettingsError, match="two towers"):
        run(encoder.with_towers({}, None, 1.0), options("mlm"), tmp_path / "run")


def test_tsdae_on_a_tuned_model_is_remarked_on(raw: dict[str, Path], tiny_model: Path) -> None:
    assert "make such models worse" in warns(model(tiny_model), options("tsdae"))[0]
    assert warns(model(raw["bert"]), options("tsdae")) == ()
    assert warns(model(tiny_model), options("mlm")) == ()


def test_whole_words_need_a_fast_tokenizer_and_mlm_a_mask(
    raw: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(model(raw["bert"]))
    tokenizer = encoder.model.tokenizer
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(SettingsError, match="whole_words"):
        run(encoder, options("mlm", whole_words=True), tmp_path)
    monkeypatch.undo()
    tokenizer.mask_token = None
    with pytest.raises(SettingsError, match="no mask token"):
        run(encoder, options("mlm"), tmp_path)


WORKER = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from tiny_models import TEXTS
from searchfit.config import ModelSettings, PretrainSettings
from searchfit.encoders import load_encoder
from searchfit.training.pretrain import pretrain

dist.init_process_group("gloo")
folder, rank = Path(sys.argv[2]), dist.get_rank()
encoder = load_encoder(ModelSettings(name=sys.argv[1], precision="fp32"))
settings = PretrainSettings(objective="tsdae", epochs=4, batch_size=8, learning_rate=5e-3)
passages = TEXTS if rank == 0 else iter(())
done = pretrain(encoder, passages, settings, 7, folder, lambda *_: None)
total = float(sum(value.double().abs().sum() for value in done.encoder.model.parameters()))
(folder / f"rank-{rank}.json").write_text(json.dumps([done.history.losses, total]))
dist.destroy_process_group()
"""


@pytest.mark.slow  # test_crew.py does it by the command line
def test_two_processes_share_the_work(raw: dict[str, Path], tmp_path: Path) -> None:
    """Each reads other batches, both end with the same weights, and only the first needs the passages."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    subprocess.run(
        [*launch, str(script), str(raw["bert"]), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=100,
    )
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    losses = first[0]
    assert len(losses) == 12  # 48 texts, 2 x 8 a step, 4 epochs
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
