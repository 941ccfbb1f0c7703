"""Corpora at the edges: nearly nothing, nothing, all the same, another script, very long, very many."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pipeline_tools import Corpus, cli, command, fit, options, ran, random_sentences, tiny_model

from searchfit.recipe import STAGES
from searchfit.search import Searcher, open_searcher

ALL = [stage.name for stage in STAGES]
SLOW_DOCUMENTS = 200_000

# Thirty dishes, animals, places ... each with a sentence of its own.
CHINESE = """
茶馆|老人们每天早上在茶馆里喝绿茶，下象棋。
火车|高速火车从北京开往上海，只要四个半小时。
熊猫|大熊猫住在四川的竹林里，一天吃很多竹子。
面条|兰州拉面用牛肉汤做，上面撒着香菜和辣椒油。
长城|长城修建在山脊上，游客从很远的地方来参观。
图书馆|大学图书馆晚上十点关门，周末也对学生开放。
医院|医院的急诊室全天都有值班医生和护士。
自行车|他骑自行车上班，因为停车位太少而且很贵。
台风|台风登陆以后，沿海的学校全部停课一天。
银行|在银行开户需要身份证和手机号码。
钢琴|女孩从五岁开始练习钢琴，梦想成为音乐家。
足球|足球比赛因为暴雨推迟到星期三晚上。
咖啡|这家咖啡店自己烘焙咖啡豆，味道有点酸。
机场|去机场的地铁每十分钟一班，早上六点发车。
月亮|中秋节的晚上全家人一起看月亮，吃月饼。
书法|书法老师教孩子们怎样握毛笔和研墨。
渔船|渔船天黑以前回到港口，卖掉新鲜的虾和螃蟹。
苹果|果园里的苹果九月成熟，农民请人来采摘。
电影|电影院今晚放映一部关于宇航员的老电影。
律师|律师建议他们先签合同，然后再付定金。
地震|地震发生时应该躲在桌子下面，远离窗户。
葡萄酒|新疆的葡萄很甜，适合酿造葡萄酒。
眼镜|他近视，没有眼镜就看不清黑板上的字。
瓷器|景德镇的瓷器薄得像纸，声音像铃。
沙漠|骆驼可以在沙漠里走很多天而不喝水。
税务|公司每个月十五号以前要向税务局报税。
电梯|电梯坏了，住在二十楼的人只好爬楼梯。
豆腐|豆腐是用黄豆做的，价格便宜，营养丰富。
滑雪|冬天很多人去东北滑雪，看冰雕展览。
邻居|楼上的邻居半夜唱歌，大家都睡不着。
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


def csv_of(folder: Path, rows: list[str], header: str = "id,title,text") -> Path:
    path = folder / "corpus.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def serves_untuned(path: Path) -> Searcher:
    """The opened workspace, which nothing was trained for."""
    searcher = open_searcher(path)
    assert searcher.engine.query_tower == 0
    assert (path / "report.html").stat().st_size > 1000
    return searcher


def test_one_document(tmp_path: Path) -> None:
    """With the built-in model, through the command line."""
    source = csv_of(tmp_path, ["a,Lamp,The brass lamp on the desk needs a new bulb."])
    done = cli("fit", "-o", tmp_path / "ws", *options(Corpus(source)))
    assert done.returncode == 0, done.stderr
    (hit,) = serves_untuned(tmp_path / "ws").search("light bulb")
    assert (hit.document_id, hit.title) == ("a", "Lamp")
    assert len(json.loads(cli("search", tmp_path / "ws", "zebra", "--json").stdout)) == 1
    assert "nothing to do" in cli("fit", "-o", tmp_path / "ws", *options(Corpus(source))).stderr


def test_one_word(tmp_path: Path, tiny: str) -> None:
    source = csv_of(tmp_path, ["a,,lamp"])
    assert ran(fit(tmp_path / "ws", Corpus(source, tiny))) == ALL
    assert [hit.document_id for hit in serves_untuned(tmp_path / "ws").search("lamp")] == ["a"]


def test_a_document_of_signs_alone(tmp_path: Path, tiny: str) -> None:
    """No word for the keyword index, no query to write."""
    source = csv_of(tmp_path, ["a,,?! ... —", "b,,🎉🎉🎉"])
    assert ran(fit(tmp_path / "ws", Corpus(source, tiny))) == ALL
    assert {hit.document_id for hit in serves_untuned(tmp_path / "ws").search("party")} == {"a", "b"}


def test_three_identical_documents(tmp_path: Path, tiny: str) -> None:
    text = "The brass lamp on the desk needs a new bulb. It was bought in Lisbon by an uncle."
    source = csv_of(tmp_path, [f"{id_},Lamp,{text}" for id_ in "abc"])
    done = cli("fit", "-o", tmp_path / "ws", *options(Corpus(source, tiny)))
    assert done.returncode == 0, done.stderr
    assert "2 documents have a text that an earlier one has" in done.stderr
    hits = serves_untuned(tmp_path / "ws").search("brass lamp")
    assert [hit.document_id for hit in hits] == ["a", "b", "c"]
    assert len({hit.score for hit in hits}) == 1
    holdout = pq.read_table(tmp_path / "ws" / "holdout.parquet")
    assert len(set(holdout["split"].to_pylist())) == 1


NOTHING = {
    "header only": "id,title,text\n",
    "empty texts": "id,title,text\na,A,\nb,B,  \nc,C,\n",
    "no byte": "",
    "blank lines": "\n\n\n",
}


@pytest.mark.parametrize("content", NOTHING.values(), ids=list(NOTHING))
def test_no_document(tmp_path: Path, tiny: str, content: str) -> None:
    source = tmp_path / "corpus.csv"
    source.write_text(content, encoding="utf-8")
    done = cli("fit", "-o", tmp_path / "ws", *options(Corpus(source, tiny)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "corpus.csv" in done.stderr
    assert cli("search", tmp_path / "ws", "lamp").returncode == 1
    assert list((tmp_path / "ws").glob("*.parquet")) == []
    # Mended, the same command goes on.
    source.write_text("id,title,text\na,A,a brass lamp\n", encoding="utf-8")
    assert (
        cli("fit", "-o", tmp_path / "ws", "--until", "split", *options(Corpus(source, tiny))).returncode == 0
    )


def test_an_empty_folder(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "empty").mkdir()
    done = cli("fit", "-o", tmp_path / "ws", *options(Corpus(tmp_path / "empty", tiny)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")


def test_two_documents_train_nothing_by_default(tmp_path: Path, tiny: str) -> None:
    source = csv_of(tmp_path, ["a,Lamp,The brass lamp needs a bulb.", "b,Boat,The boat lies in the harbour."])
    steps = {step.stage: step for step in fit(tmp_path / "ws", Corpus(source, tiny), train__min_queries=64)}
    result = steps["train"].result
    assert result is not None
    assert "Too few training queries" in result.notes[0]
    assert serves_untuned(tmp_path / "ws").search("harbour")[0].document_id == "b"


def test_chinese(tmp_path: Path) -> None:
    """A language without spaces, and not the built-in model's own: keyword search has to carry it."""
    documents = [line.split("|") for line in CHINESE.strip().splitlines()]
    assert len(documents) == 30
    source = tmp_path / "chinese.jsonl"
    rows = [json.dumps({"id": str(i), "title": t, "text": x}, ensure_ascii=False)
            for i, (t, x) in enumerate(documents)]  # fmt: skip
    source.write_text("\n".join(rows), encoding="utf-8")
    fit(tmp_path / "ws", Corpus(source), train__enabled=False)
    searcher = open_searcher(tmp_path / "ws")
    asked = {
        "骆驼 沙漠": "沙漠",
        "什么时候吃月饼": "月亮",
        "开户要带身份证吗": "银行",
        "竹林里的大熊猫": "熊猫",
        "牛肉汤拉面": "面条",
        "去机场坐地铁": "机场",
    }
    found = {query: searcher.search(query, k=1)[0].title for query in asked}
    assert found == asked
    hit = searcher.search("骆驼 沙漠", k=1)[0]
    assert {hit.snippet[a:b] for a, b in hit.highlights} & {"骆驼", "沙漠", "骆", "沙"}


def test_a_text_of_a_megabyte(tmp_path: Path, tiny: str) -> None:
    """Cut into passages that cover all of it; what stands at its very end is found."""
    chance = random.Random(2)
    words = ["the", "harbour", "has", "seven", "old", "boats", "with", "sails", "of", "white", "linen"]
    sentences = (" ".join(chance.choices(words, k=30)).capitalize() + "." for _ in range(7000))
    long = " ".join(sentences)
    assert len(long) > 1_000_000
    long += " The quartermaster hid the emerald under the staircase."
    rows = [json.dumps({"id": "long", "text": long}), json.dumps({"id": "short", "text": "A brass lamp."})]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    fit(tmp_path / "ws", Corpus(tmp_path / "corpus.jsonl", tiny), train__enabled=False)
    passages = pq.read_table(tmp_path / "ws" / "passages.parquet").to_pylist()
    of_long = [passage for passage in passages if passage["document_id"] == "long"]
    assert len(of_long) > 900
    assert all(p["text"] == long[p["start"] : p["end"]] for p in of_long)
    ends = [0, *(p["end"] for p in of_long)]
    assert not any(long[end : p["start"]].strip() for end, p in zip(ends, of_long, strict=False))
    assert ends[-1] == len(long)
    hits = open_searcher(tmp_path / "ws").search("emerald under the staircase")
    assert hits[0].document_id == "long"
    assert "emerald" in hits[0].text
    assert len(hits) == 2  # one hit a document


def test_a_long_text_without_a_border(tmp_path: Path, tiny: str) -> None:
    rows = [json.dumps({"id": "a", "text": "x" * 400_000}), json.dumps({"id": "b", "text": "brass lamp"})]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    fit(tmp_path / "ws", Corpus(tmp_path / "corpus.jsonl", tiny), train__enabled=False)
    assert open_searcher(tmp_path / "ws").search("lamp", k=1)[0].document_id == "b"


ODD_NAMES = [
    "price (EUR)",
    "a.b",
    "größe",
    "vector",
    "row",
    "document_id",
    "m0",
    "sentences",
    "select",
    "日期",
    "x'y",
]


def test_odd_names_of_metadata_columns(tmp_path: Path, tiny: str) -> None:
    """Names with signs, SQL words, and those of the index's own columns: kept, and can be filtered on."""
    source = tmp_path / "corpus.jsonl"
    rows = [
        {"id": str(i), "text": f"a document on {word}", **dict.fromkeys(ODD_NAMES, i * 10)}
        for i, word in enumerate(["bread", "wine", "salt", "wool", "silk", "copper", "tin", "paper"])
    ]
    source.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    fit(tmp_path / "ws", Corpus(source, tiny), source__id="id", source__text=("text",))
    searcher = open_searcher(tmp_path / "ws")
    (hit,) = searcher.search("wool", k=1)
    assert hit.document_id == "3"
    assert hit.metadata == {**dict.fromkeys(ODD_NAMES, 30), "language": None}
    assert set(ODD_NAMES) <= set(searcher.columns)
    for name in ODD_NAMES:
        hits = searcher.search("document", k=8, where=f"`{name}` >= 60")
        assert {hit.document_id for hit in hits} == {"6", "7"}, name


@pytest.mark.slow
def test_very_many_short_documents(tmp_path: Path, tiny: str) -> None:
    """200,000 documents, generated as they are written; run with -s to see memory and seconds by stage."""
    source = tmp_path / "many.jsonl"
    with source.open("w", encoding="utf-8") as file:
        file.writelines(_lines(SLOW_DOCUMENTS))
    with source.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"id": "needle", "text": "The quartermaster hid the emerald under the staircase."})
        )
    done = command("fit", "-o", tmp_path / "ws", *options(Corpus(source, tiny), generate__max_queries=3000))
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "ws" / "manifest.json").read_text(encoding="utf-8"))["stages"]
    for name, entry in stages.items():
        print(f"{name:9} {entry['seconds']:7.1f} s {entry['peak_memory_mb']:6} MB")
    assert max(entry["peak_memory_mb"] for entry in stages.values()) < 4096
    assert open_searcher(tmp_path / "ws").search("where is the emerald", k=1)[0].document_id == "needle"


def _lines(count: int) -> Iterator[str]:
    sentences = random_sentences(9)
    for i in range(count):
        yield json.dumps({"id": f"d{i}", "text": f"{next(sentences)} {next(sentences)}", "number": i}) + "\n"
