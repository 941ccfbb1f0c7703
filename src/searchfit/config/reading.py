"""The settings of what is read: documents, questions, labelled pairs, feedback."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from searchfit.config.base import Section
from searchfit.config.secrets import take_password


class SourceSettings(Section):
    """What is read. Column names are only needed where they cannot be told from the data."""

    source: str = Field("", description="file, folder or scheme:..., for example pydoc:json,email")
    text: tuple[str, ...] = Field((), description="column(s) that hold the text, joined by blank lines")
    id: str = Field("", description="column that holds the document id")
    title: str = Field("", description="column that holds the title")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="share of bad rows above which reading fails")
    max_text_chars: int = Field(5_000_000, ge=1, description="longer texts count as bad rows")

    @field_validator("source")
    @classmethod
    def _no_password(cls, value: str) -> str:
        # Settings are written down; the password of a database's address is not.
        return take_password(value)


class SqlSettings(Section):
    """What is read where the source is a database: sqlite:///FILE, postgresql://..., mysql://... or
    mariadb://..., or a file of SQLite."""

    query: str = Field("", description="SELECT statement; its columns are the columns of the source")
    table: str = Field("", description="table or view, schema.name where needed, in place of a query")
    where: str = Field("", description="condition that rows of the table have to meet, as SQL")
    updated_column: str = Field(
        "", description="column that grows when a row changes: `add` then reads only what changed"
    )
    since: str = Field(
        "", description="SQL literal: rows whose updated_column is less are not read; `add` knows it itself"
    )
    password_file: str = Field(
        "", description="file with the password; empty: SEARCHFIT_SQL_PASSWORD, or none"
    )
    batch_rows: int = Field(1000, ge=1, description="rows that are fetched at a time")


class DatasetSettings(Section):
    """What is read where the source is a Hugging Face dataset, hf:NAME or hf:FOLDER."""

    subset: str = Field("", description="configuration of the dataset; empty: its default")
    split: str = Field("train", description="which split")
    streaming: bool = Field(True, description="read row by row, without making a copy on disk first")


class FilesSettings(Section):
    """Which files of a folder are read, and how."""

    include: tuple[str, ...] = Field((), description='globs below the folder, "**/*.pdf"; empty: all kinds')
    exclude: tuple[str, ...] = Field((), description="globs of files to leave out")
    parser: Literal["builtin", "docling", "markitdown"] = Field(
        "builtin", description="what turns PDF, DOCX and the like into text; the others are installed apart"
    )
    max_file_mb: int = Field(200, ge=1, description="larger files are left out, and named")
    timeout: float = Field(60.0, gt=0, description="seconds that one file may take")
    memory_mb: int = Field(1024, ge=64, description="memory that the process that parses files may take")


class CleanSettings(Section):
    """What is mended in the texts that are read, and told of them; the counts are in the report."""

    steps: tuple[str, ...] = Field(
        ("unicode", "control"), description="in this order: entities, unicode, control, spaces, boilerplate"
    )
    form: Literal["NFC", "NFKC"] = Field("NFC", description="normal form of the step unicode")
    boilerplate_documents: float = Field(
        0.3,
        gt=0,
        le=1,
        description="boilerplate drops lines that stand in more than this share of them, and in 5 or more",
    )
    language: bool = Field(
        True, description="tell each document's language, as the metadata `language`; a column of yours stays"
    )


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
    metadata: tuple[str, ...] = Field(
        (),
        description="column(s) kept with the passages where these are the corpus, to show and to filter on",
    )
    split: str = Field("train", description="which qrels of a BEIR folder, or SPLIT.* of a folder, to use")


class FeedbackSettings(Section):
    """What readers judged and clicked, see `searchfit feedback`."""

    workspace: str = Field(
        "", description="workspace whose judgements and clicks are used; empty: none; --feedback: its own"
    )
    min_questions: int = Field(
        40, ge=1, description="so many judged questions evaluate; fewer are only kept out of training"
    )
    max_questions: int = Field(
        200, ge=1, description="judged questions that evaluate, dev and test together; further ones train"
    )
    click_bias: float = Field(
        1.0, ge=0, description="a click at rank r weighs r to this power, at most 5; 0: all weigh 1"
    )
    click_weight: float = Field(
        6.0, gt=0, description="weight of the clicks on a document from which it is an answer to train on"
    )
