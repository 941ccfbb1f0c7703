"""Where sentences and words begin and end, in any language, in linear time.

Rules, not a model: borders are punctuation, blank lines and list items. A wrong border costs little here,
a slow or failing one would cost the whole fit, so every regular expression below moves forward only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Han, kana, their punctuation-free extensions: written without spaces, about two characters a word.
CJK = "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
CJK += "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
"""The body of a regular expression's character class."""

# Thai, Lao, Burmese, Khmer: written without spaces, about five characters a word.
_ABUGIDA = "\u0e01-\u0e4e\u0e81-\u0eff\u1000-\u109f\u1780-\u17d3"

_CJK = re.compile(f"[{CJK}]")
_UNSPACED = re.compile(f"[{CJK}{_ABUGIDA}]+")
_WORD = re.compile(r"[^\W_]\S*")
_TOKEN = re.compile(f"[{CJK}]{{1,2}}|[{_ABUGIDA}]{{1,5}}|[^\\W_{CJK}{_ABUGIDA}][^\\s{CJK}{_ABUGIDA}]*")

_CLOSERS = "\"'”’»›)\\]}」』】〉》）］｝"
_BORDER = re.compile(
    rf"(?P<soft>[.!?…‽؟]+[{_CLOSERS}]*)"
    rf"|[。！？；｡।॥۔։።၊။៕]+[{_CLOSERS}]*"
    r"|(?P<line>(?:\r\n?|[\n\v\f\x85\u2028\u2029])\s*)"
)
_ITEM = re.compile(r"(?:[-*+•·◦▪■●‣–—>|]+|#{1,6}|\(?(?:\d{1,3}|[a-zA-Z])[.)]|[①-⑳])(?=\s|$)|[・●■•]")
_SHORT_LINE = 50
"""Columns. A line that ends earlier, without punctuation, was broken on purpose."""

_NAMES = """capt cf cmdr dipl dr dra e.g eg frau gen gob gov herr hon hr i.e ie lic lt messrs mlle mme mr mrs
ms mt p.ej prof rev sen sgt sr sra srta st ste v vgl viz vs z.b zb г см ул"""
_SHORTENED = """al approx apt assn ave blvd bzw ca ch cia co col corp dept dpto ed eds eq eqs esp est etc
exp ext ff figs ft hrs inc incl jr kg km ltd max mb min mm mts nr pag pág par pers pl pp pt qtd ref refs reg
resp sect sig std str tab tel u.a univ usw vol vols т.д т.е т.п"""
_NUMBERED = "art ch eq fig no nos nr nro num núm p pag pág pp sec tab vol №"
_BEFORE_NAMES, _ANYWHERE, _BEFORE_NUMBERS = (
    frozenset(words.split()) for words in (_NAMES, _SHORTENED, _NUMBERED)
)
_LONGEST_ABBREVIATION = 12


def sentences(text: str) -> list[tuple[int, int]]:
    """The (start, end) of every sentence, in order, without surrounding white space.

    Together they cover every character that is not white space. Blank text has none.
    """
    spans = []
    start = 0
    for border in (*_borders(text), len(text)):
        piece = text[start:border]
        if bare := piece.strip():
            begin = start + len(piece) - len(piece.lstrip())
            spans.append((begin, begin + len(bare)))
        start = border
    return spans


def units(text: str, min_words: int) -> list[tuple[int, int]]:
    """Sentences of at least `min_words` words: a shorter one is joined with the next, the last with its
    predecessor. Never empty where `text` is not blank; a text shorter than that is one unit.
    """
    joined: list[tuple[int, int]] = []
    open_start = -1
    for start, end in sentences(text):
        open_start = start if open_start < 0 else open_start
        # Of the whole: what two sentences have as two words may be one where they stand side by side.
        if word_count(text[open_start:end]) >= min_words:
            joined.append((open_start, end))
            open_start = -1
    if open_start >= 0:
        begin = joined.pop()[0] if joined else open_start
        joined.append((begin, end))
    return joined


def word_count(text: str) -> int:
    """Words, as readers count them: in scripts without spaces two (Han, kana) or five (Thai, Lao, Burmese,
    Khmer) characters make one, rounded up.
    """
    if text.isascii():
        return len(_WORD.findall(text))
    dense = "".join(_UNSPACED.findall(text))
    han = len(_CJK.findall(dense))
    return len(_WORD.findall(_UNSPACED.sub(" ", text))) + -(-han // 2) + -(-(len(dense) - han) // 5)


def words(text: str) -> list[tuple[int, int]]:
    """The (start, end) of every word, without punctuation around it; scripts without spaces in steps of two
    or five characters, as `word_count` counts them.
    """
    spans = []
    for match in _TOKEN.finditer(text):
        end = match.end()
        while (
            end - match.start() > 1
            and not text[end - 1].isalnum()
            and unicodedata.category(text[end - 1])[0] != "M"
        ):
            end -= 1
        spans.append((match.start(), end))
    return spans


def title_part(title: str, max_chars: int) -> str:
    """The beginning of a title, white space made single, at most `max_chars` long, cut at a word border
    where there is one.
    """
    line = " ".join(title.split())
    return line[: cut(line, 0, max_chars)].rstrip() if len(line) > max_chars else line


def cut(text: str, start: int, most: int) -> int:
    """Where to cut `text[start:]` so that the part has at most `most` (1 or more) characters.

    Prefers the last white space of the second half, then a border between what is seen as characters
    (an emoji sequence, a letter and its accents stay whole unless longer than 32). Always above `start`.
    """
    end = start + max(most, 1)
    if end >= len(text):
        return len(text)
    for position in range(end, start + max(most // 2, 1), -1):
        if text[position].isspace():
            return position
    for position in range(end, max(start, end - 32), -1):
        if not _joined(text, position):
            return position
    return end


def _joined(text: str, position: int) -> bool:
    """Whether the characters on both sides of a position are seen as one."""
    before, after = text[position - 1], text[position]
    if before.isascii() and after.isascii():
        return False
    flags = "\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff"
    modifier = "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f"
    return flags or modifier or "\u200d" in (before, after) or unicodedata.category(after)[0] == "M"


def _borders(text: str) -> Iterator[int]:
    line_start = 0
    for match in _BORDER.finditer(text):
        if match["line"] is not None:
            if _breaks_line(text, line_start, match):
                yield match.end()
            line_start = match.end()
        elif match["soft"] is None or _ends_sentence(text, line_start, match):
            yield match.end()


def _breaks_line(text: str, line_start: int, match: re.Match[str]) -> bool:
    """Whether a line break parts sentences; text that was only wrapped must stay whole."""
    if len(f".{match[0]}.".splitlines()) > 2 or _ITEM.match(text, match.end()):
        return True
    last, first = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if not first or first.islower() or last in ".,，、:":
        return False
    columns = match.start() - line_start
    return columns * (2 if _CJK.match(last) else 1) < _SHORT_LINE


def _ends_sentence(text: str, line_start: int, match: re.Match[str]) -> bool:
    """Whether . ! ? or … ends a sentence."""
    following = text[match.end() : match.end() + 1]
    if following and not following.isspace():
        return bool(_CJK.match(following) and _CJK.match(text, match.start() - 1))
    mark = match[0]
    next_char = text[match.end() : match.end() + 8].lstrip()[:1]
    if next_char.islower() and (mark.strip("!?؟‽.") or mark.startswith("..")):
        return False
    if mark != ".":
        return True
    return not _abbreviates(text, line_start, match.start(), next_char)


def _abbreviates(text: str, line_start: int, dot: int, next_char: str) -> bool:
    """Whether the full stop at `dot` belongs to the word before it: `e.g.`, `J.`, `No.` 5, a list's `1.`"""
    floor = max(line_start, dot - _LONGEST_ABBREVIATION)
    before = text[floor:dot].split()
    if not before or text[dot - 1].isspace():
        return False
    word = before[-1].lstrip("([{\"'“‘«¿¡")
    alone = floor == line_start and len(before) == 1
    if word.isdigit():
        return alone and len(word) <= 3
    if len(word) == 1 and word.isalpha():
        return (word.isupper() and word != "I") or alone
    folded = word.casefold()
    if folded in _BEFORE_NAMES or (folded in _BEFORE_NUMBERS and next_char.isdigit()):
        return True
    if folded in _ANYWHERE:
        return not next_char.isupper()
    return "." in word and all(len(part) == 1 for part in word.split("."))
