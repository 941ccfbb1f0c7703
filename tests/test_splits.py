"""Which generated questions train and which judge, where there are several generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.errors import SettingsError
from searchfit.recipe import STAGES
from searchfit.records import HOLDOUT, PAIRS
from searchfit.splits import JUDGE, judging_generator, pair_splits
from searchfit.stages import Tools, mine


def judge(**values: Any) -> str:
    return judging_generator(load_settings(values={key.replace("__", "."): v for key, v in values.items()}))


def test_the_last_of_several_generators_judges() -> None:
    assert judge() == ""
    assert judge(generate__generator="phrases, t5") == "t5"
    assert judge(generate__generator="phrases,t5:some-model") == "t5:some-model"
    assert judge(generate__generator="phrases,t5", holdout__judge="phrases") == "phrases"
    assert judge(generate__generator="phrases,t5", holdout__judge="any") == ""
    # One that writes nothing is not at hand.
    assert judge(generate__generator="phrases,t5", generate__shares=(1.0, 0.0)) == ""


@pytest.mark.parametrize(("generator", "wanted"), [("phrases", "phrases"), ("phrases,t5", "chat:x")])
def test_a_judge_that_is_not_at_hand(generator: str, wanted: str) -> None:
    with pytest.raises(SettingsError, match="not one of several"):
        judge(generate__generator=generator, holdout__judge=wanted)


def tables(folder: Path, judge: str) -> tuple[Path, Path]:
    """Twelve pairs by two generators in turn, on six documents: two in each split."""
    rows = [
        {"id": f"q{n}", "text": f"text {n}", "passage_id": "", "style": "", "seed": 0, "rank": 1,
         "generator": ("phrases", "t5")[n % 2], "passage": n // 2, "document": n // 2}
        for n in range(12)
    ]  # fmt: skip
    names = ["train", "dev", "test"] * 2
    held = [
        {"document": n, "document_id": str(n), "cluster": n, "split": name} for n, name in enumerate(names)
    ]
    table = pa.Table.from_pylist(held, schema=HOLDOUT)
    pq.write_table(
        table.replace_schema_metadata({JUDGE: judge}) if judge else table, folder / "holdout.parquet"
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    return folder / "pairs.parquet", folder / "holdout.parquet"


def test_a_question_s_split_follows_from_its_document_and_its_writer(tmp_path: Path) -> None:
    every = ["train"] * 2 + ["dev"] * 2 + ["test"] * 2
    assert pair_splits(*tables(tmp_path, "")).tolist() == every * 2
    judged = ["train", "", "", "dev", "", "test"]
    assert pair_splits(*tables(tmp_path, "t5")).tolist() == judged * 2


def test_the_stages_keep_to_it(bench: Any, tmp_path: Path) -> None:
    """Half of the made-up questions are another generator's, which judges: none of its is trained on, and all
    that dev and test are its."""
    pairs = pq.read_table(bench.path("pairs.parquet"))
    names = pa.array([("phrases", "t5")[n % 2] for n in range(len(pairs))])
    place = pairs.schema.get_field_index("generator")
    pq.write_table(pairs.set_column(place, "generator", names), tmp_path / "pairs.parquet")
    holdout = next(stage for stage in STAGES if stage.name == "holdout")
    settings = load_settings(base=bench.settings, values={"generate.generator": "phrases,t5"})
    result = holdout.module.run(settings.only(*holdout.sections), bench.inputs("holdout"), Tools(tmp_path))
    assert result.notes == ("Questions of t5 judge; those of the other generators train (holdout.judge).",)
    own = {name: tmp_path / name for name in ("pairs.parquet", "holdout.parquet")}
    writer = dict(zip(pairs["text"].to_pylist(), names.to_pylist(), strict=True))
    stage = next(stage for stage in STAGES if stage.name == "mine")
    inputs = {**bench.inputs("mine"), **own}
    mine.run(bench.settings.only(*stage.sections), inputs, Tools(tmp_path))
    texts = pq.read_table(tmp_path / "mined" / "queries.parquet")["text"].to_pylist()
    assert len(texts) > 20
    assert {writer[text] for text in texts} == {"phrases"}
    evaluate = next(stage for stage in STAGES if stage.name == "evaluate")
    inputs = {**bench.inputs("evaluate"), **own, "mined": tmp_path / "mined"}
    evaluate.module.run(bench.settings.only(*evaluate.sections), inputs, Tools(tmp_path))
    table = pq.read_table(tmp_path / "evaluation" / "queries.parquet")
    assert {writer[text] for text in table["text"].to_pylist()} == {"t5"}
    assert set(table["split"].to_pylist()) == {"dev", "test"}
