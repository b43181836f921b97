"""Names of clusters: the words that are frequent in one and rare in the others.  K clusters, V terms.

Class-based TF-IDF (c-TF-IDF): all texts of a cluster are one document,

    weight(t, c) = tf(t, c) * log(1 + A / f(t))

where ``tf`` is the share of t among the terms of c, ``f`` how often t occurs in all clusters, and ``A`` the
mean number of terms per cluster.

Paper: Grootendorst 2022, "BERTopic: Neural topic modeling with a class-based TF-IDF procedure", section 3.3.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nvembed.errors import needs_extra

MAX_CHARS = 5_000  # of a text; enough for a name
WORD = r"(?u)\b[^\W\d][\w+#]+"  # two characters or more, no number; C++ and C# are words
PAIR_SHARE = 0.75  # a pair of words with this share of one word's weight replaces it: "visual studio"
MAX_TERMS = 50_000  # the most frequent ones


class Term(NamedTuple):
    text: str
    weight: float


def class_tf_idf(counts_KV: Any) -> Any:
    """Weigh term counts, dense or scipy sparse (K, V): the same kind in float64, by the formula above.

    A cluster without terms and a term without occurrences weigh 0.
    """
    from scipy import sparse

    counts = sparse.csr_array(counts_KV, dtype=np.float64)
    sums = counts.sum(axis=1)
    frequency = np.maximum(counts.sum(axis=0), 1)
    share = sparse.diags_array(1 / np.maximum(sums, 1)) @ counts
    return share @ sparse.diags_array(np.log1p(sums.mean() / frequency))


def name_terms(
    texts: Sequence[str], labels: np.ndarray, count: int, *, top: int = 10, stop_words: str | None = "english"
) -> list[list[Term]]:
    """Return the ``top`` terms (words and pairs of words) of each of ``count`` clusters, the heaviest first.

    No word occurs in two of them. Texts are lower-cased and cut to ``MAX_CHARS`` characters; those with a
    negative label belong to no cluster.

    Args:
        texts: the texts, or a sample of them.
        labels: int (n,), the cluster of each.
        stop_words: ``english`` leaves out English function words (scikit-learn's list).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with needs_extra("learn", "the names of clusters"):
        from sklearn.feature_extraction.text import CountVectorizer
    from scipy import sparse

    inside = np.flatnonzero(labels >= 0)
    vectorizer = CountVectorizer(
        stop_words=stop_words,
        ngram_range=(1, 2),
        max_features=MAX_TERMS,
        token_pattern=WORD,
        min_df=2 if len(inside) > 100 else 1,
    )
    try:
        counts = vectorizer.fit_transform(texts[row][:MAX_CHARS] for row in inside.tolist())
    except ValueError:  # "empty vocabulary": only stop words and single letters
        return [[] for _ in range(count)]
    ones = np.ones(len(inside))
    member = sparse.csr_array((ones, (labels[inside], np.arange(len(inside)))), shape=(count, len(inside)))
    weights = class_tf_idf(member @ counts)
    words = vectorizer.get_feature_names_out()
    return [_heaviest(weights[[number], :].tocoo(), words, top) for number in range(count)]


def name_of(terms: Sequence[Term], number: int, *, words: int = 3) -> str:
    """Return the name of a cluster: its heaviest terms, or its number if it has none."""
    return ", ".join(term.text for term in terms[:words]) or f"cluster {number}"


def _heaviest(row: Any, words: np.ndarray, top: int) -> list[Term]:
    order = np.lexsort((words[row.coords[1]], -row.data))  # of equal weights, by the alphabet
    terms = [Term(str(words[row.coords[1][i]]), float(row.data[i])) for i in order if row.data[i] > 0]
    pairs: dict[str, Term] = {}  # word -> the heaviest pair of words with it
    for term in terms:
        if len(parts := term.text.split()) > 1:
            for word in parts:
                pairs.setdefault(word, term)
    chosen: list[Term] = []
    used: set[str] = set()
    for term in terms:
        pair = pairs.get(term.text, term)
        for candidate in (pair, term) if pair.weight >= PAIR_SHARE * term.weight else (term,):
            if used.isdisjoint(candidate.text.split()):
                chosen.append(candidate)
                used.update(candidate.text.split())
        if len(chosen) == top:
            break
    return chosen
