"""Split documents into passages that the encoder sees whole.

A document that fits passes as it is. A longer one is cut at sentence borders into as few passages as the
limits allow, and those into even shares, so that no stub is left over. Sizes are planned on the tokens of
single sentences, but every passage is admitted only by the tokens of its whole encoded text: tokenizers
are not additive.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings, SplitSettings
from searchfit.errors import SettingsError
from searchfit.records import PASSAGES, PLACE, Document, Drop, Passage, StageResult, encoded_text
from searchfit.stages import Tools
from searchfit.text import cut, sentences, title_part, units
from searchfit.writing import sync_file

if TYPE_CHECKING:
    from searchfit.encoders import Tokenizer

VERSION = 1

Span = tuple[int, int]
Piece = list[Span]
"""The sentences, or parts of an overlong one, of a passage; (start, end) in the document's text."""

_MAX_TITLE_CHARS = 200
_LEAST_TOKENS = 16
_BATCH_DOCUMENTS, _BATCH_CHARS = 256, 1_000_000
_CALL_TEXTS = 8192
_GROUP_ROWS, _GROUP_CHARS = 20_000, 8_000_000
_STUB = 0.2
_SPACE = re.compile(r"\s")


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read documents.parquet and write passages.parquet (records.PASSAGES), both in a stream.

    Raises ModelError where the tokenizer does not load, and SettingsError where the document prompt leaves
    no room for text or the overlap is not below the size of a passage.
    """
    from searchfit.encoders import load_tokenizer

    window = Window(load_tokenizer(settings.model), settings.model.document_prompt)
    documents = cut_up = found = passages = 0
    blank: list[str] = []
    with (
        pq.ParquetFile(inputs["documents.parquet"]) as file,
        _Writer(tools.output / "passages.parquet", "marks" in file.schema_arrow.names) as writer,
    ):
        for batch in _batches(file):
            split = split_documents(batch, window, settings.split)
            blank += [document.id for (_, document), parts in zip(batch, split, strict=True) if not parts]
            for parts in split:
                writer.write(parts)
                passages += len(parts)
                cut_up += len(parts) > 1
                found += sum(len(part.sentences) for part in parts)
            documents += len(batch)
            tools.progress("splitting documents", documents, file.metadata.num_rows)
    counts = {"documents": documents, "passages": passages, "split_documents": cut_up, "sentences": found}
    sizes = {"max_tokens": window.largest, "window": window.size}
    drops = (Drop("blank text", len(blank), tuple(blank[:5])),) if blank else ()
    return StageResult(counts | sizes, drops)


class Window:
    """What the encoder sees at once: `size` tokens of prompt, title and text, special tokens included."""

    def __init__(self, tokenizer: Tokenizer, prompt: str = "") -> None:
        """Raises SettingsError unless the prompt leaves half of the window, and 16 tokens, for the rest."""
        self.size = tokenizer.max_tokens
        self.largest = 0
        """The most tokens of any text that was found to fit."""
        self._tokenizer, self._prompt = tokenizer, prompt
        self._special, used = (int(count) for count in tokenizer.count(["", prompt]))
        if self.size - used < max(self.size // 2, _LEAST_TOKENS):
            raise SettingsError(
                f"the model sees {self.size} tokens and model.document_prompt takes {used} of them; at least "
                f"{max(self.size // 2, _LEAST_TOKENS)} are needed for title and text.",
                "Shorten the prompt, or choose a model with a larger window.",
            )

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, special tokens not included."""
        # In slices: the tokenizer keeps everything that it found out about every text of a call.
        slices = (texts[start : start + _CALL_TEXTS] for start in range(0, len(texts), _CALL_TEXTS))
        return [int(count) - self._special for part in slices for count in self._tokenizer.count(part)]

    def room(self, titles: Sequence[str]) -> list[int]:
        """Tokens that the prompt, each title and the special tokens leave for the text, about."""
        heads = self.tokens([self._prompt + (encoded_text(title, "") if title else "") for title in titles])
        return [self.size - self._special - head for head in heads]

    def fits(self, passages: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the model sees all of each (title, text)."""
        texts = [self._prompt + encoded_text(title, text) for title, text in passages]
        counts = [count + self._special for count in self.tokens(texts)]
        self.largest = max([self.largest, *(count for count in counts if count <= self.size)])
        return [count <= self.size for count in counts]

    def clip(self, titles: Sequence[str]) -> list[str]:
        """Titles of at most 200 characters and a quarter of the window, cut at word borders."""
        clipped = [title_part(title, _MAX_TITLE_CHARS) for title in titles]
        quarter = self.size // 4
        long = list(range(len(clipped)))
        while long:
            counts = self.tokens([clipped[row] for row in long])
            for row, tokens in zip(long, counts, strict=True):
                if tokens > quarter:
                    most = min(len(clipped[row]) * quarter // tokens, len(clipped[row]) - 1)
                    clipped[row] = title_part(clipped[row], most) if most > 0 else ""
            long = [row for row, tokens in zip(long, counts, strict=True) if tokens > quarter]
        return clipped


def split_documents(
    documents: Sequence[tuple[int, Document]], window: Window, settings: SplitSettings
) -> list[list[Passage]]:
    """The passages of each (row, document), in order; a blank text has none.

    Every character of a text that is not white space is in a passage, and in just one unless
    `overlap_chars` is set. Tokens are counted in a few calls for all the documents together.
    """
    if settings.overlap_chars >= settings.max_chars:
        raise SettingsError(
            f"split.overlap_chars is {settings.overlap_chars}; less than split.max_chars "
            f"({settings.max_chars}) is expected."
        )
    titles = window.clip([document.title for _, document in documents])
    texts = [document.text for _, document in documents]
    pieces: list[list[Piece]] = [[[_bare(text, 0, len(text))]] if text.strip() else [] for text in texts]
    short = [row for row, parts in enumerate(pieces) if parts and _length(parts[0]) <= settings.max_chars]
    fits = window.fits([(titles[row], _text(texts[row], pieces[row][0])) for row in short])
    done = {row for row, fit in zip(short, fits, strict=True) if fit}
    large = [row for row, parts in enumerate(pieces) if parts and row not in done]
    heads, bodies = [titles[row] for row in large], [texts[row] for row in large]
    for row, parts in zip(large, _cut(heads, bodies, window, settings), strict=True):
        pieces[row] = parts
    return [
        [
            _passage(n, piece, (row, document, title), settings.min_sentence_words)
            for n, piece in enumerate(parts)
        ]
        for (row, document), title, parts in zip(documents, titles, pieces, strict=True)
    ]


def _passage(n: int, piece: Piece, source: tuple[int, Document, str], min_words: int) -> Passage:
    row, document, title = source
    text = _text(document.text, piece)
    found = tuple(units(text, min_words))
    name = f"{document.id}#{n}"
    start, end = piece[0][0], piece[-1][1]
    last = bisect_right(document.marks, start, key=itemgetter(0))
    page, heading = document.marks[last - 1][1:] if last else (0, "")
    return Passage(name, document.id, row, title, text, start, end, found, page, heading)


def _bare(text: str, start: int, end: int) -> Span:
    """The span without white space around it."""
    part = text[start:end]
    return end - len(part.lstrip()), start + len(part.rstrip())


def _text(text: str, piece: Piece) -> str:
    return text[piece[0][0] : piece[-1][1]]


def _length(piece: Piece) -> int:
    return piece[-1][1] - piece[0][0]


def _cut(
    titles: Sequence[str], texts: Sequence[str], window: Window, settings: SplitSettings
) -> list[list[Piece]]:
    """The pieces of each text, none larger than the limits."""
    rooms = window.room(titles)
    atoms = _atoms(texts, rooms, window, settings.max_chars)
    plans = [
        [(row, piece) for piece in _Packing(spans, settings.max_chars, room).pieces(settings.overlap_chars)]
        for row, (spans, room) in enumerate(zip(atoms, rooms, strict=True))
    ]
    trial = [item for plan in plans for item in plan]
    pieces: list[list[Piece]] = [[] for _ in texts]
    while trial:
        fits = window.fits([(titles[row], _text(texts[row], piece)) for row, piece in trial])
        for (row, piece), fit in zip(trial, fits, strict=True):
            if fit:
                pieces[row].append(piece)
        tight = [item for item, fit in zip(trial, fits, strict=True) if not fit]
        trial = [(row, half) for row, piece in tight for half in _halves(texts[row], piece)]
    return [_outermost(parts) for parts in pieces]


def _outermost(pieces: list[Piece]) -> list[Piece]:
    """The pieces in order, without those that lie in another: overlap and halving together can make some."""
    kept: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece[0][0], -piece[-1][1])):
        if not kept or piece[-1][1] > kept[-1][-1][1]:
            kept.append(piece)
    return kept


def _halves(text: str, piece: Piece) -> tuple[Piece, Piece]:
    """Two parts of a piece that turned out too large for the window."""
    if len(piece) > 1:
        middle = (piece[0][0] + piece[-1][1]) // 2
        border = min(range(1, len(piece)), key=lambda index: abs(piece[index][0] - middle))
        return piece[:border], piece[border:]
    ((start, end),) = piece
    if end - start == 1:
        raise SettingsError(
            f"the model's window cannot hold the single character {text[start:end]!r} beside the title and "
            "model.document_prompt.",
            "Shorten the prompt, or choose a model with a larger window.",
        )
    border = cut(text, start, (end - start + 1) // 2)
    return [_bare(text, start, border)], [_bare(text, border, end)]


def _atoms(
    texts: Sequence[str], rooms: Sequence[int], window: Window, max_chars: int
) -> list[list[tuple[int, int, int]]]:
    """The (start, end, tokens) of each text's sentences; one beyond the limits is in parts."""
    atoms: list[list[tuple[int, int, int]]] = [[] for _ in texts]
    trial = [(row, span) for row, text in enumerate(texts) for span in sentences(text)]
    while trial:
        counts = window.tokens([texts[row][start:end] for row, (start, end) in trial])
        long = []
        for (row, (start, end)), tokens in zip(trial, counts, strict=True):
            excess = max((end - start) / max_chars, tokens / rooms[row])
            if excess <= 1 or end - start == 1:
                atoms[row].append((start, end, tokens))
            else:
                long += [(row, part) for part in _parts(texts[row], start, end, excess)]
        trial = long
    return [sorted(spans) for spans in atoms]


def _parts(text: str, start: int, end: int, excess: float) -> Iterator[Span]:
    """Parts of an overlong sentence, fine enough to pack well; where there are spaces, words stay whole."""
    most = max(int((end - start) / excess), 1)
    fine = max(most // 8, 1)
    while start < end:
        space = _SPACE.search(text, start + fine, min(start + most, end))
        border = min(space.start() if space else cut(text, start, fine), end)
        span = _bare(text, start, border)
        if span[0] < span[1]:
            yield span
        start = border


class _Packing:
    """How the sentences of one text go into as few pieces as the limits allow."""

    def __init__(self, atoms: Sequence[tuple[int, int, int]], max_chars: int, room: int) -> None:
        self.starts = [start for start, _, _ in atoms]
        self.ends = [end for _, end, _ in atoms]
        self.tokens = list(accumulate((tokens for _, _, tokens in atoms), initial=0))
        self.max_chars, self.room = max_chars, room

    def pieces(self, overlap: int) -> list[Piece]:
        """As few as filling them greedily gives, but of even sizes: the least share of the limits that
        still needs no more pieces is found by bisection.
        """
        best = self._fill(1.0, overlap)
        low, high = 0.0, 1.0
        for _ in range(8 if len(best) > 1 else 0):
            share = (low + high) / 2
            trial = self._fill(share, overlap)
            if len(trial) <= len(best):
                best, high = trial, share
            else:
                low = share
        if not overlap:
            best = self._without_stub(best)
        return [list(zip(self.starts[a:b], self.ends[a:b], strict=True)) for a, b in best]

    def _fill(self, share: float, overlap: int) -> list[Span]:
        """Ranges of sentences, each filled up to a share of the limits, with one new sentence at least."""
        ranges: list[Span] = []
        first = done = 0
        while done < len(self.starts):
            stop = self._furthest(first, share)
            if stop <= done and first < done:
                first += 1
                continue
            ranges.append((first, max(stop, done + 1)))
            done = ranges[-1][1]
            repeated = bisect_left(self.starts, self.ends[done - 1] - overlap)
            first = min(max(repeated, first + 1), done)
        return ranges

    def _furthest(self, first: int, share: float) -> int:
        by_chars = bisect_right(self.ends, self.starts[first] + self.max_chars * share)
        return min(by_chars, bisect_right(self.tokens, self.tokens[first] + self.room * share) - 1)

    def _without_stub(self, ranges: list[Span]) -> list[Span]:
        """Move sentences from the piece before the last to a last one that is too short."""
        if len(ranges) < 2:
            return ranges
        *rest, (start, border), (_, stop) = ranges
        while (
            border - start > 1
            and self.ends[stop - 1] - self.starts[border] < _STUB * self.max_chars
            and self._furthest(border - 1, 1.0) >= stop
        ):
            border -= 1
        return [*rest, (start, border), (border, stop)]


def _batches(file: pq.ParquetFile) -> Iterator[list[tuple[int, Document]]]:
    """(row, document) in batches that are small in number and in characters."""
    batch: list[tuple[int, Document]] = []
    row = size = 0
    columns = [name for name in ("id", "title", "text", "marks") if name in file.schema_arrow.names]
    for table in file.iter_batches(batch_size=_BATCH_DOCUMENTS, columns=columns):
        for record in table.to_pylist():
            marks = tuple(tuple(mark.values()) for mark in record.get("marks") or ())
            document = Document(record["id"], record["text"] or "", record["title"] or "", marks=marks)
            if batch and (size + len(document.text) > _BATCH_CHARS or len(batch) == _BATCH_DOCUMENTS):
                yield batch
                batch, size = [], 0
            batch.append((row, document))
            row, size = row + 1, size + len(document.text)
    if batch:
        yield batch


class _Writer:
    """passages.parquet, written beside its place by row groups and put there when complete; with the columns
    of pages and headings where `placed`."""

    def __init__(self, path: Path, placed: bool) -> None:
        self.path = path
        self.placed = placed
        self.schema = pa.schema([*PASSAGES, *PLACE]) if placed else PASSAGES
        self.beside = path.with_name(f"{path.name}.tmp")
        self.rows: list[Passage] = []
        self.chars = 0

    def __enter__(self) -> _Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = pq.ParquetWriter(self.beside, self.schema, compression="zstd")
        return self

    def write(self, passages: Sequence[Passage]) -> None:
        self.rows += passages
        self.chars += sum(len(passage.text) for passage in passages)
        if len(self.rows) >= _GROUP_ROWS or self.chars >= _GROUP_CHARS:
            self._flush()

    def _flush(self) -> None:
        columns = {
            name: [getattr(passage, name) for passage in self.rows]
            for name in PASSAGES.names
            if name != "sentences"
        }
        columns["sentences"] = [[edge for span in row.sentences for edge in span] for row in self.rows]
        if self.placed:
            values = ([row.page or None for row in self.rows], [row.heading or None for row in self.rows])
            columns |= dict(zip(PLACE.names, values, strict=True))
        self.file.write_table(pa.table(columns, schema=self.schema))
        self.rows, self.chars = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.rows:
            self._flush()
        self.file.close()
        if kind is None:
            sync_file(self.beside)
            os.replace(self.beside, self.path)
