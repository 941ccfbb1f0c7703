from __future__ import annotations

import pytest
from huggingface_hub import ModelCard
from reporting.made_up import HOSTILE, card_of, evidence, parts, told


def test_the_markdown_says_what_the_json_says() -> None:
    text, value = card_of(evidence()), told(evidence())
    assert ModelCard(text).data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert value["verdict"].split(":")[0] in text
    for row in value["systems"]:
        cells = [f"{row['test'][name]:.3f}" for name in row["test"]]
        assert " | ".join(cells) in text
    for band in (row for group in value["bands"] for row in group["rows"]):
        assert f"| {band['n']} | {band['mean']:+.3f} ({band['low']:+.3f} to {band['high']:+.3f}) |" in text
    assert "right answer at rank not found before, 1 after" in text
    assert "    searchfit fit listings.csv --text description -o my-search\n" in text


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("an/encoder", "an/encoder"),
        ("/home/me/model", None),
    ],
)
def test_only_a_model_of_the_hub_is_named_as_base(model: str, base: str | None) -> None:
    text = card_of(evidence(), model=model)
    assert ModelCard(text).data.base_model == base
    assert "/home/me" not in text


def test_hostile_text_is_neither_html_nor_markdown() -> None:
    others = parts()
    for card in (card for kind in ("gains", "losses", "hardest") for card in others["examples"][kind]):
        card["query"] = HOSTILE + "\n---\n# big [x](http://evil.example) `a` | b"
    text = card_of(evidence(), others)
    assert "<script" not in text
    assert "<img" not in text
    assert "\n# big" not in text
    assert "\\[x\\](http" in text
    assert ModelCard(text).data.pipeline_tag == "sentence-similarity"
