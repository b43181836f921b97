"""The words of a text in any language, for search by words and for highlighting.

A word is a run of letters, digits and marks; case, width and Latin accents are folded, and the endings of the
text's language are removed. A word in mixed case (``getUserName``) is indexed whole and by its parts.
Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese text is indexed by characters and pairs of
neighbouring characters, and looked up by pairs.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import Stemmer
from bm25s import stopwords

from nvembed.errors import InputError

Span = tuple[int, int]  # characters [start, end) of the text
NO_LANGUAGE = "none"
LANGUAGES: tuple[str, ...] = (NO_LANGUAGE, *Stemmer.algorithms())
_PART = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+(?<=..)|\d{2,}")
MAX_IDENTIFIER = 60  # a longer word in mixed case is a code of another kind
MAX_WORDS = 1 << 16  # words whose stem is cached

_STOP_WORDS: dict[str, Sequence[str]] = {
    "danish": stopwords.STOPWORDS_DANISH,
    "dutch": stopwords.STOPWORDS_DUTCH,
    "english": stopwords.STOPWORDS_EN,
    "french": stopwords.STOPWORDS_FRENCH,
    "german": stopwords.STOPWORDS_GERMAN,
    "italian": stopwords.STOPWORDS_ITALIAN,
    "norwegian": stopwords.STOPWORDS_NORWEGIAN,
    "portuguese": stopwords.STOPWORDS_PORTUGUESE,
    "russian": stopwords.STOPWORDS_RUSSIAN,
    "spanish": stopwords.STOPWORDS_SPANISH,
    "swedish": stopwords.STOPWORDS_SWEDISH,
    "turkish": stopwords.STOPWORDS_TURKISH,
}
# Scripts that are written in one language mostly, of those with a stemmer.
_SCRIPTS = {
    "arabic": "\u0621-\u064a\u067e\u0686\u0698\u06a9\u06af\u06cc",
    "armenian": "\u0561-\u0587",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "hindi": "\u0904-\u0939\u0958-\u0961",
    "tamil": "\u0b83-\u0bb9",
}
# Letters that Arabic lacks; Urdu has all of them.
_PERSIAN, _URDU = re.compile("[\u067e\u0686\u0698\u06af]"), re.compile("[\u0679\u0688\u0691\u06d2]")
# The share of stop words in the words of a text that is written in one of these languages.
MIN_STOP_WORDS = 0.1
# So many more of them than of the language of its corpus has a document in another language.
CLEAR_STOP_WORDS = 4

# Scripts without spaces between words, and Korean, whose spaces do not separate particles.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
_FOLDED_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "\u0131": "i", "þ": "th", "ð": "d"}
    | {"\u0451": "\u0435"}
)


class Words:
    """The words of texts, folded and stemmed.

    Args:
        languages: of ``LANGUAGES``, whose endings are removed; ``none`` removes none. With several, a word
            has the stem of each, to find the passages of all of them and mark their words.

    Raises:
        InputError: an unknown language.
    """

    def __init__(self, *languages: str) -> None:
        self.languages = tuple(dict.fromkeys(languages)) or (NO_LANGUAGE,)
        self._each = [_Language(name) for name in self.languages]
        self._stems: dict[str, tuple[str, ...]] = {}

    def __call__(self, text: str) -> list[str]:
        """Return the words of a text in order, as they are indexed."""
        return [word for _, word in self.located(text)]

    def located(self, text: str) -> Iterator[tuple[Span, str]]:
        """Yield each word with its position; the pairs of unspaced scripts overlap."""
        for match in _pattern().finditer(text):
            if match.lastgroup == "word":
                word, first = match.group(), match.start()
                for start, end in ((0, len(word)), *_parts(word)):
                    for stem in self._word(word[start:end]):
                        yield (first + start, first + end), stem
            else:
                yield from _pairs(match.group(), match.start())

    def query(self, text: str) -> list[str]:
        """Return the distinct words to look up, without stop words if there are others.

        Of several languages, those with most stop words in the query decide which words these are.
        """
        spaced: dict[str, None] = {}
        pairs: dict[str, None] = {}
        for match in _pattern().finditer(text):
            word = match.group()
            if match.lastgroup == "word":
                spaced.update((word[start:end], None) for start, end in ((0, len(word)), *_parts(word)))
            else:
                its = [pair for _, pair in _pairs(word, 0)]
                longest = max(map(len, its), default=0)
                pairs.update((pair, None) for pair in its if longest == 1 or len(pair) > 1)
        stops = [{word for word in spaced if language.is_stop_word(word)} for language in self._each]
        most = max(map(len, stops))
        stop_words = set().union(*(words for words in stops if len(words) == most))
        kept = [word for word in spaced if word not in stop_words]
        words = kept if kept or pairs else spaced
        return list(dict.fromkeys([*(stem for word in words for stem in self._word(word)), *pairs]))

    def _word(self, word: str) -> tuple[str, ...]:
        stems = self._stems.get(word)
        if stems is None:
            folded = _fold(word)
            stems = tuple(dict.fromkeys(language.stem(folded) for language in self._each))
            if len(self._stems) < MAX_WORDS:
                self._stems[word] = stems
        return stems


class _Language:
    """The stemmer and the stop words of a language."""

    def __init__(self, name: str) -> None:
        if name not in LANGUAGES:
            raise InputError(f"unknown language {name!r}; expected one of {', '.join(LANGUAGES)}")
        self._stemmer = None if name == NO_LANGUAGE else Stemmer.Stemmer(name)
        self._stop_words = frozenset(self.stem(_fold(word)) for word in _STOP_WORDS.get(name, ()))

    def stem(self, word: str) -> str:
        return word if self._stemmer is None else self._stemmer.stemWord(word) or word

    def is_stop_word(self, word: str) -> bool:
        return self.stem(_fold(word)) in self._stop_words


def detect_language(texts: Sequence[str], default: str | None = None) -> str:
    """Return the language of texts: of their script, else the one whose stop words are most of the words.

    Args:
        default: returned unless another language is clear: ``CLEAR_STOP_WORDS`` more are of it. None:
            ``none`` where no language is clear.
    """
    fallback = NO_LANGUAGE if default is None else default
    joined = "".join(texts)
    letters = 0 if joined.isascii() else sum(map(str.isalpha, joined))
    for language, script in _SCRIPTS.items():
        if letters and 2 * len(re.findall(f"[{script}]", joined)) > letters:
            if language == "arabic" and _URDU.search(joined):
                return fallback
            return "persian" if language == "arabic" and _PERSIAN.search(joined) else language
    words = [match.group().casefold() for text in texts for match in _pattern().finditer(text)]
    counts = Counter(language for word in words for language in _stop_word_languages().get(word, ()))
    best = max(_STOP_WORDS, key=lambda language: counts[language])
    least = MIN_STOP_WORDS * len(words) if default is None else counts[default] + CLEAR_STOP_WORDS
    return best if words and counts[best] >= max(least, MIN_STOP_WORDS * len(words)) else fallback


@cache
def _stop_word_languages() -> dict[str, tuple[str, ...]]:
    """Return the languages in which each word is a stop word."""
    languages: dict[str, tuple[str, ...]] = {}
    for language, words in _STOP_WORDS.items():
        for word in frozenset(words):
            languages[word] = (*languages.get(word, ()), language)
    return languages


def _parts(word: str) -> Sequence[Span]:
    """Return the parts of an identifier in mixed case, of two letters or more; none of any other word."""
    if len(word) > MAX_IDENTIFIER or not word.isascii() or word[1:].islower() or word.upper() == word:
        return ()
    parts = [match.span() for match in _PART.finditer(word)]
    return parts if len(parts) > 1 else ()


def _pairs(run: str, start: int) -> Iterator[tuple[Span, str]]:
    """Yield the characters and the pairs of neighbours of a run of an unspaced script, marks removed."""
    letters: list[tuple[int, str]] = []
    for i, char in enumerate(run):
        for part in unicodedata.normalize("NFKC", char).casefold():
            category = unicodedata.category(part)[0]
            if category in "LN":
                letters.append((start + i, part))
            elif category == "M" and letters:  # a separate voicing mark; tone marks are left out
                composed = unicodedata.normalize("NFC", letters[-1][1] + part)
                if len(composed) == 1:
                    letters[-1] = (letters[-1][0], composed)
    for i, (place, char) in enumerate(letters):
        yield (place, place + 1), char
        if i + 1 < len(letters):
            yield (place, letters[i + 1][0] + 1), char + letters[i + 1][1]


def _fold(word: str) -> str:
    word = word.casefold()
    if word.isascii():
        return word
    letters, base = [], "a"
    for char in unicodedata.normalize("NFKD", word).casefold():
        if unicodedata.combining(char):
            if (
                base < "\u0400" or "\u0590" <= base < "\u0900"
            ):  # accents, and vowel marks of Hebrew and Arabic
                continue
        else:
            base = char
        letters.append(char)
    folded = unicodedata.normalize("NFC", "".join(letters)).translate(_FOLDED_LETTERS)
    return folded if folded.strip() else word


@cache
def _pattern() -> re.Pattern[str]:
    """Runs of unspaced scripts, and words: letters and digits with the marks that ``\\w`` leaves out."""
    marks = [chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M")]
    other_marks = "".join(char for char in marks if not re.match(f"[{_UNSPACED}]", char))
    letter = rf"[^\W_{_UNSPACED}]"
    return re.compile(rf"(?P<unspaced>[{_UNSPACED}]++)|(?P<word>{letter}(?:{letter}|[{other_marks}])*+)")
