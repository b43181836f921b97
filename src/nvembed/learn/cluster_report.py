"""What ``nvembed cluster`` found, in Markdown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvembed.learn.topics import Term
from nvembed.read.beir import Passage

SNIPPET_CHARS = 160
QUOTE_CHARS = 400


@dataclass(frozen=True)
class Cluster:
    """A cluster of the whole corpus, with its most central passages and their similarity."""

    number: int
    name: str
    size: int
    terms: list[Term]
    representatives: list[tuple[float, Passage]]


@dataclass(frozen=True)
class Result:
    rows: int
    clusters: list[Cluster]
    noise: int
    how: str


def cluster_report(
    result: Result, name: str, notes: Sequence[str], silhouettes: Mapping[int, float], *, picture: bool
) -> str:
    """Return the report: sizes and names, how k was chosen, terms and passages of each cluster."""
    lines = [f"# Clusters of {markdown(name)}", ""]
    lines += [f"{result.rows:,} passages, {len(result.clusters)} clusters. {result.how}."]
    if result.noise:
        lines += ["", f"In no cluster: {result.noise:,} passages ({result.noise / result.rows:.1%})."]
    lines += ["", *(f"- {markdown(note)}" for note in notes)]
    if picture:
        lines += ["", "![The corpus in the plane](map.png)"]
    lines += ["", "| cluster | name | passages | share |", "|---:|---|---:|---:|"]
    for item in result.clusters:
        share = item.size / result.rows
        lines.append(f"| {item.number} | {markdown(item.name)} | {item.size:,} | {share:.1%} |")
    if silhouettes:
        chosen = max(silhouettes, key=lambda k: silhouettes[k])
        lines += ["", "## How k was chosen", ""]
        lines += [f"The highest mean silhouette: k = {chosen}. Near 0 means that clusters touch.", ""]
        lines += ["| k | " + " | ".join(map(str, silhouettes)) + " |", "|---|" + "---:|" * len(silhouettes)]
        lines += ["| silhouette | " + " | ".join(f"{value:.3f}" for value in silhouettes.values()) + " |"]
    for item in result.clusters:
        lines += ["", f"## {item.number}: {markdown(item.name)}", ""]
        lines += [f"{item.size:,} passages. Terms: {markdown(', '.join(term.text for term in item.terms))}"]
        for similarity, passage in item.representatives:
            lines += ["", f"> {markdown(snippet(passage.text, QUOTE_CHARS))}  "]
            lines += [f"> ({markdown(passage.id)}, similarity {similarity:.3f})"]
    return "\n".join(lines) + "\n"


def snippet(text: str, chars: int = SNIPPET_CHARS) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: chars - 1].rstrip() + "…"


def markdown(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
