"""Which part of a passage a query met: words of the same stem, or the sentence that is most like it."""

import re
import unicodedata
from typing import Any

from nvembed.errors import MissingExtraError

Span = tuple[int, int]  # characters [start, end) of the passage

_WORD = re.compile(r"\w+")
# A sentence ends at a full stop, a question or an exclamation mark before white space, or at a line break.
_SENTENCE = re.compile(r"[^\s].*?(?:[.!?\u3002\uff01\uff1f]+(?=\s|$)|(?=\n)|$)", re.DOTALL)


class Marker:
    """Finds the words of a query in passages: case, accents and English endings aside, stop words left out.

    Raises:
        MissingExtraError: the extra ``search`` is not installed.
    """

    def __init__(self, query: str) -> None:
        self._stem, self._stop = _libraries()
        self._wanted = {stem for _, stem in self._stems(query)}

    def spans(self, passage: str) -> list[Span]:
        """Return where the query's words stand, in order; with only white space between they are one span."""
        spans: list[Span] = []
        for (start, end), stem in self._stems(passage):
            if stem in self._wanted:
                if spans and passage[spans[-1][1] : start].isspace():
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((start, end))
        return spans

    def _stems(self, text: str) -> list[tuple[Span, str]]:
        found = [(match.span(), _folded(match.group())) for match in _WORD.finditer(text)]
        return [(span, self._stem.stemWord(word)) for span, word in found if word not in self._stop]


def sentences(passage: str) -> list[Span]:
    """Return the sentences of a passage, which is never empty-handed: one without an end is one sentence."""
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
            f"marking needs the package {error.name}: install the extra with  pip install 'nvembed[search]'"
        ) from error
    return Stemmer.Stemmer("english"), frozenset(STOPWORDS_EN)
