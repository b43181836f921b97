"""Mines a whole set, in chunks from which a killed run resumes, into a file of examples and a report.

Until the end, the finished chunks are in ``OUT.work/mined/``.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.data.example import Example, to_row
from nvembed.data.label import seeded
from nvembed.data.report import render_report, summarize
from nvembed.data.rows import Numbered, is_intact, sealed_path, text_key
from nvembed.data.rule import Rule, Teacher, check_candidates, check_rule, fill, keep, sample
from nvembed.errors import DataError, OutputError
from nvembed.files import atomic_path, claim, write_json

CHUNK = 1024  # queries between two points from which a killed run resumes


class Corpus:
    """The distinct passages of a set, and which of them answer which query.

    Passages that differ only in case and white space are one passage, so a copy of a positive is a positive.
    The known positives of a query are those of all its records, and a passage that equals the query.
    """

    def __init__(self, passages: Numbered[str], examples: Iterable[Example]) -> None:
        self.passages = passages
        self._number: dict[bytes, int] = {}
        digest = hashlib.blake2b(digest_size=16)
        for number in range(len(passages)):
            key = text_key(passages[number])
            self._number.setdefault(key, number)
            digest.update(key)
        self._known: dict[bytes, set[int]] = defaultdict(set)
        for example in examples:
            query = text_key(example.query)
            digest.update(query)
            for text in example.positives:
                if (key := text_key(text)) not in self._number:
                    raise DataError(
                        f"a positive of {example.query[:80]!r} is not among the passages: {text[:80]!r}"
                    )
                self._known[query].add(self._number[key])
        self.fingerprint = digest.hexdigest()

    def positives(self, query: str) -> list[int]:
        """Return the numbers of the known positives, rising."""
        return sorted(self._known[text_key(query)])

    def right(self, query: str, text: str) -> bool:
        """Return whether a text is a known positive."""
        return self._number.get(text_key(text)) in self._known[text_key(query)]

    def forbidden(self, example: Example) -> set[int]:
        """Return what may not be mined for an example: positives, its query, and its own negatives."""
        texts = (example.query, *example.hard_negatives)
        own = (self._number.get(text_key(text)) for text in texts)
        return self._known[text_key(example.query)] | {number for number in own if number is not None}


def mine_set(
    examples: Numbered[Example],
    corpus: Corpus,
    teacher: Teacher,
    rule: Rule,
    *,
    out: Path,
    seed: int,
    teacher_name: str,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Mine hard negatives for ``examples`` and write them, in the same order, to ``out``.

    An example keeps its own negatives, except positives of another record of its query, and gets mined ones
    up to ``rule.negatives``. A stopped run resumes after its last complete chunk. ``OUT.report.json`` and
    ``OUT.report.md`` are written beside ``out``.

    Args:
        teacher_name: identifies the teacher and its weights; a run resumes only with the same name.
        seed: decides random choices by query, so that chunks and restarts change nothing.

    Returns:
        The report: counts, score histograms, and examples to read.

    Raises:
        OutputError: ``out`` exists, or its work folder belongs to a run with other settings.
        DataError: a positive that is not among the passages.
        InputError: the rule cannot do what it states.
        NumericsError: the teacher's scores are not finite.
    """
    check_rule(rule)
    if out.exists():
        raise OutputError(f"{out} exists already: remove it to mine again, or write to another path")
    state = {"rule": rule.model_dump(), "teacher": teacher_name, "inputs": corpus.fingerprint, "seed": seed}
    work = out.with_suffix(".work") / "mined"
    claim(work / "state.json", {**state, "chunk": CHUNK})
    starts = range(0, len(examples), CHUNK)
    paths = [work / f"chunk-{index:05d}.npz" for index in range(len(starts))]
    for path, start in zip(paths, starts, strict=True):
        stop = min(start + CHUNK, len(examples))
        if not is_intact(path):
            _save(path, _mine_chunk([examples[i] for i in range(start, stop)], corpus, teacher, rule, seed))
        say(f"{out.name}: {stop:,} of {len(examples):,} queries")
    report = {**state, **_finish(paths, rule, out)}
    shutil.rmtree(work)
    with suppress(OSError):  # the caller may have files in it
        work.parent.rmdir()
    return report


@dataclass(frozen=True)
class _Mined:
    examples: list[Example]
    positive: np.ndarray  # (Q,) lowest score of a known positive
    best: np.ndarray  # (Q,) best score of a passage that is not a positive; -inf without one
    negative: np.ndarray  # scores of all mined negatives, one after the other
    excluded: int  # candidates that the rule left out as false negatives
    filled: int  # random passages
    shown: list[dict[str, Any]]


def _mine_chunk(chunk: Sequence[Example], corpus: Corpus, teacher: Teacher, rule: Rule, seed: int) -> _Mined:
    queries = [example.query for example in chunk]
    known = [corpus.positives(query) for query in queries]
    candidates = teacher(queries, known)
    check_candidates(candidates, len(chunk), len(corpus.passages))
    forbidden = [corpus.forbidden(example) for example in chunk]
    kept_QK = keep(candidates, rule, forbidden)
    allowed_QK = keep(candidates, Rule(method="naive", negatives=1, depth=1), forbidden)
    mined, scores, shown, filled = [], [], [], 0
    for row, example in enumerate(chunk):
        rng = seeded(seed, example.query)
        own = [text for text in example.hard_negatives if not corpus.right(example.query, text)]
        own = own[: rule.negatives]
        room = rule.negatives - len(own)
        places = sample(kept_QK[row], rule, rng, count=room)
        numbers = [int(number) for number in candidates.ids[row, places]]
        extra = fill(numbers, room, forbidden[row], len(corpus.passages), rng) if rule.top_up else []
        filled += len(extra)
        scores.append(candidates.scores[row, places])
        texts = tuple(corpus.passages[number] for number in [*numbers, *extra])
        mined.append(replace(example, hard_negatives=(*own, *texts), hard_negative_ids=()))
        if row % (CHUNK // 4) == 0:
            negatives = [
                {"score": round(float(candidates.scores[row, place]), 4), "text": corpus.passages[number]}
                for place, number in zip(places, numbers, strict=True)
            ]
            positive = {"score": round(float(candidates.positive[row]), 4), "text": example.positives[0]}
            shown.append({"query": example.query, "positive": positive, "negatives": negatives})
    best = np.where(allowed_QK, candidates.scores, -np.inf).max(axis=1, initial=-np.inf)
    return _Mined(
        examples=mined,
        positive=candidates.positive,
        best=best,
        negative=np.concatenate(scores),
        excluded=int((allowed_QK & ~kept_QK).sum()),
        filled=filled,
        shown=shown,
    )


def _save(path: Path, mined: _Mined) -> None:
    lines = "".join(json.dumps(to_row(example), ensure_ascii=False) + "\n" for example in mined.examples)
    counts = {"excluded": mined.excluded, "filled": mined.filled, "shown": mined.shown}
    texts = {"lines": lines, "counts": json.dumps(counts)}
    arrays = {"positive": mined.positive, "best": mined.best, "negative": mined.negative}
    arrays |= {name: np.frombuffer(text.encode(), dtype=np.uint8) for name, text in texts.items()}
    with sealed_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # its stub takes the arrays for flags


def _finish(paths: Sequence[Path], rule: Rule, out: Path) -> dict[str, Any]:
    """Join the chunks into ``out``. The reports are written first: if ``out`` exists, all is complete."""
    parts = [np.load(path) for path in paths]
    counts = [json.loads(part["counts"].tobytes()) for part in parts]
    lengths: list[int] = []
    with sealed_path(out) as temporary:
        with temporary.open("wb") as handle:
            for part in parts:
                for line in part["lines"].tobytes().split(b"\n")[:-1]:
                    lengths.append(len(json.loads(line).get("hard_negatives", [])))
                    handle.write(line + b"\n")
        report = summarize(
            *(np.concatenate([part[name] for part in parts]) for name in ("positive", "best", "negative")),
            lengths=np.array(lengths),
            full=rule.negatives,
            shown=_spread([item for count in counts for item in count["shown"]], 20),
        )
        report |= {name: sum(count[name] for count in counts) for name in ("excluded", "filled")}
        write_json(out.with_suffix(".report.json"), report)
        with atomic_path(out.with_suffix(".report.md")) as file:
            file.write_text(render_report(out.stem, report), encoding="utf-8")
    return report


def _spread(items: list[Any], count: int) -> list[Any]:
    step = max(len(items) / count, 1)
    return [items[int(i * step)] for i in range(min(count, len(items)))]
