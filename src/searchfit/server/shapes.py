"""What the API takes and gives, as /openapi.json describes it. An unknown field is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Value = str | bool | int | float | None


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SearchBody(Body):
    """A search."""

    query: Text = Field(description="words or a question")
    limit: int = Field(10, ge=1, description="how many results")
    offset: int = Field(0, ge=0, description="leave out so many of the first results")
    filter: str | dict[str, Any] | None = Field(
        None, description='in the filter language, `price < 3 and city = "Huesca"`, or as an object'
    )
    rerank: bool = Field(True, description="by the engine's re-ranker, if it has one")
    explain: bool = Field(False, description="with every score and rank that led to a result")
    group: Literal["document", "passage"] = Field("document", description="one result for each of these")
    workspace: str | None = Field(None, description="by its name; the first without one")


class HitShape(BaseModel):
    """A result. `text` is the passage, characters `start` to `end` of its document; `highlights` are pairs of
    character numbers (code points) in `snippet`."""

    rank: int
    score: float
    document_id: str
    passage_id: str
    title: str
    text: str
    snippet: str
    highlights: list[tuple[int, int]]
    start: int
    end: int
    metadata: dict[str, Any]
    scores: dict[str, float]


class SearchAnswer(BaseModel):
    """Results, all from one `version` of the index."""

    workspace: str
    version: str
    took_ms: float
    hits: list[HitShape]


class EmbeddingsBody(Body):
    """Texts to embed, as OpenAI's API takes them."""

    input: Text | Annotated[list[Text], Field(min_length=1)] = Field(description="a text or several")
    model: str | None = Field(None, description="name of a workspace; the first without one")
    dimensions: int | None = Field(None, ge=1, description="only so many, for models trained to be cut")
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["query", "document"] = Field("document", description="which tower encodes the texts")
    user: str | None = Field(None, description="taken for compatibility; not kept")


class Embedding(BaseModel):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of the texts, before any are cut to the model's window."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class TextShape(Body):
    """A text to re-rank."""

    text: Text


class RerankBody(Body):
    """Texts to re-rank for a query, as Cohere's and Jina's APIs take them."""

    query: Text
    documents: Annotated[list[Text | TextShape], Field(min_length=1)]
    model: str | None = Field(None, description="name of a workspace; the first without one")
    top_n: int | None = Field(None, ge=1, description="only the best so many")
    return_documents: bool = False


class Reranked(BaseModel):
    """A text by its place in the request, with its score from 0 to 1."""

    index: int
    relevance_score: float
    document: TextShape | None = None


class RerankAnswer(BaseModel):
    """Texts, best first."""

    model: str
    results: list[Reranked]


class DocumentShape(Body):
    """A document to add. One with the same id is replaced. Metadata columns that the index has are kept."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    text: Text
    title: str = ""
    metadata: dict[str, Value] = {}


class DocumentsBody(Body):
    """Documents to add or replace."""

    documents: Annotated[list[DocumentShape], Field(min_length=1)]
    workspace: str | None = Field(None, description="by its name; the first without one")


class GrowthAnswer(BaseModel):
    """What a change did."""

    added: int
    changed: int
    removed: int
    unchanged: int
    encoded: int
    reused: int
    passages: int
    generation: int
    notes: list[str]


class Said(Body):
    """What feedback is about."""

    query: Text
    document_id: Text
    workspace: str | None = Field(None, description="by its name; the first without one")


class JudgementBody(Said):
    """A reader's judgement of a document for a query."""

    grade: int | None = Field(description="0 for wrong, 1 or more for right; null takes an earlier one back")


class ClickBody(Said):
    """That a reader opened a document."""

    rank: int = Field(ge=1, description="where it stood, from 1")


class ErrorDetail(BaseModel):
    """What was got and expected, and what to do."""

    type: str
    message: str
    hint: str


class ErrorAnswer(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail
