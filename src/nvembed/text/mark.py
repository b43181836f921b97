"""Which part of a passage a query met: words of the same stem, or the sentence that is most like it."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from nvembed.errors import MissingExtraError

Span = tuple[int, int]  # characters [start, end) of the passage

_WORD = re.compile(r"\w+")
# A sentence ends at a full stop, a question or an exclamation mark before white space, or at a line break.
_SENTENCE = re.compile(r"\S.*?(?:[.!?\u3002\uff01\uff1f]+(?=\s|$)|(?=\n)|$)", re.DOTALL)


class Stems:
    """Stems of a text's words: case, accents and English endings aside, English stop words left out.

    Raises:
        MissingExtraError: the extra ``search`` is not installed.
    """

    def __init__(self) -> None:
        self._stemmer, self._stop = _libraries()

    def __call__(self, text: str) -> list[str]:
        return [stem for _, stem in self.located(text)]

    def located(self, text: str) -> Iterator[tuple[Span, str]]:
        """Yield each stem with where its word stands."""
        for match in _WORD.finditer(text):
            word = _folded(match.group())
            if word not in self._stop:
                yield match.span(), self._stemmer.stemWord(word)


def word_spans(query: str, passages: list[str]) -> list[list[Span]]:
    """Return where the query's words stand in each passage; neighbours make one span."""
    stems = Stems()
    wanted = set(stems(query))
    found = []
    for passage in passages:
        spans: list[Span] = []
        for (start, end), stem in stems.located(passage):
            if stem in wanted:
                if spans and passage[spans[-1][1] : start].isspace():
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((start, end))
        found.append(spans)
    return found


def sentences(passage: str) -> list[Span]:
    """Return where the sentences of a passage stand; a passage without an end mark is one."""
    return [match.span() for match in _SENTENCE.finditer(passage)]


def _folded(word: str) -> str:
    plain = unicodedata.normalize("NFKD", word.casefold())
    return "".join(char for char in plain if not unicodedata.combining(char))


def _libraries() -> tuple[Any, frozenset[str]]:
    try:
        import Stemmer
        from bm25s.stopwords import STOPWORDS_EN
    except ImportError as error:
        raise MissingExtraError(
            f"stemming needs the package {error.name}: install the extra with  pip install 'nvembed[search]'"
        ) from error
    return Stemmer.Stemmer("english"), frozenset(STOPWORDS_EN)
