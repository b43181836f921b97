"""`nvembed choose`: several models on the user's own documents and questions."""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nvembed.cli.models import Loading, open_model
from nvembed.cli.options import Compute, Count, Flag
from nvembed.cli.screen import results, say, warn
from nvembed.errors import DataError, InputError, NvembedError
from nvembed.evaluate.choose import (
    Material,
    Measurement,
    Quality,
    agreement,
    check_material,
    first_rows,
    judged,
    measure,
)
from nvembed.evaluate.record import environment
from nvembed.evaluate.report import Point, chart_points
from nvembed.evaluate.subject import Subject
from nvembed.files import write_json
from nvembed.indexing.models import find_model
from nvembed.read.beir import read_qrels, read_texts
from nvembed.read.chunk import cut_texts
from nvembed.read.corpus import Document, list_files, read_documents
from nvembed.read.front_matter import split_front_matter

WORDS = "bm25"
UNJUDGED_QUESTIONS = 200  # without judgements: questions, or documents, whose rankings are compared
# About a token each in any script: up to 8 letters, a letter of a script without spaces, a sign.
_PIECE = re.compile(r"[^\W\u0e00-\U000fffff]{1,8}|\w|[^\w\s]")


def choose(
    *models: str,
    corpus: str,
    questions: Path | None = None,
    qrels: Path | None = None,
    out: Path,
    reference: str | None = None,
    instruction: str = "Given a question, retrieve passages that answer the question",
    field: str | None = None,
    follow_links: Flag = False,
    sample: Count | None = None,
    chunk_tokens: Annotated[Count, Parameter(show_default=True)] = 200,
    max_tokens: Count = 512,
    compute: Compute = Compute(),
) -> None:
    """Measure several models on your own documents and questions.

    Quality, tokens per second, peak memory, bytes of a vector and licence of each model, with search by words
    (BM25) as a baseline. Each model runs in a process of its own, one after another. All models get the same
    passages. `nvembed compare` puts results of `nvembed evaluate` side by side instead.

    Examples:

        nvembed choose all-MiniLM-L6-v2/ embeddinggemma-300m/ --corpus docs/ \\
            --questions questions.jsonl --qrels qrels.tsv --out choice

        nvembed choose small/ large/ --corpus docs/ --reference large/ --out choice

    Parameters
    ----------
    models
        Hub ids or folders. `NAME=FOLDER` sets the name.
    corpus
        A folder of documents, or one file, as for `nvembed embed`; or a folder with corpus.jsonl (BEIR).
    questions
        Questions, one per line (.txt) or record (.jsonl, .csv, ... with the fields id and text). Without them
        documents are the questions, and models are compared with the reference.
    qrels
        Which documents answer which questions: lines of question id, document id, grade, separated by tabs.
        The id of a document is its name below the corpus; of a question without id, its row from 0.
    out
        Folder for choose.json and choose.png.
    reference
        Without --qrels: the model that the others should agree with. Default: the first one.
    instruction
        Sentence that describes the task, for models that read one before each question.
    field
        Field with the text, in files that have fields. Default: "text", with "title" before it.
    follow_links
        Read files of the folder that are symbolic links.
    sample
        Measure on so many documents: those with judgements, and others at random. Default: all.
    chunk_tokens
        Most tokens of a passage, counted by rule: a word has one for every 8 letters.
    max_tokens
        Most tokens read of one text.
    """
    if not models or len({*models, WORDS}) <= len(models):
        raise InputError(
            f"expected one or more models, each once: hub ids, folders, or random; {WORDS} is always measured"
        )
    if qrels is not None and (questions is None or reference is not None):
        raise InputError("--qrels needs --questions, and leaves nothing to do for --reference")
    if reference is not None and reference not in models:
        raise InputError(f"--reference is {reference!r}; expected one of {', '.join(models)}")
    licences = {spec: licence_of(spec) for spec in models}
    documents = _documents(corpus, field, follow_links)
    grades: Mapping[str, Mapping[str, int]] | None = None
    texts: dict[str, str] = {}
    if questions is not None:
        texts = {one.id: one.text for one in read_texts(questions, unique=True)}
    if qrels is not None:
        grades = read_qrels(qrels, queries=texts, passages=documents)
        if missing := len(texts) - len(grades):
            warn(f"{missing:,} of {len(texts):,} questions have no judgement: they are left out")
        texts = {id_: texts[id_] for id_ in grades}
    if sample is not None:
        documents = _sampled(documents, sample, grades or {})
    material = _material(documents, texts, grades is None, instruction, chunk_tokens)
    say(
        f"{len(material.documents):,} documents, {len(material.passages):,} passages, "
        f"{len(material.questions):,} {'documents as ' * material.own_document}questions"
    )
    loading = Loading(max_tokens, compute.device, compute.dtype)
    measured = _measure_all(models, loading, material)
    rows = _rows(measured, material, grades, reference or models[0], licences)
    _print(rows, None if grades is not None else reference or models[0])
    _write(rows, out, material, corpus)
    if len(measured) < 1 + len(models):
        raise InputError(f"{1 + len(models) - len(measured)} of {len(models)} models could not be measured")


@dataclass(frozen=True)
class Choice:
    """A line of the table."""

    model: str
    quality: Quality
    measurement: Measurement
    licence: str
    p: float | None  # of the difference from the best

    def content(self) -> dict[str, Any]:
        own, quality = self.measurement, self.quality
        return {
            "model": self.model,
            **{name: round(float(values.mean()), 4) for name, values in quality.values.items()},
            "interval_95": [round(bound, 4) for bound in quality.interval(quality.main) or ()] or None,
            "p_against_best": self.p,
            "tokens_per_second": own.tokens_per_second and round(own.tokens_per_second, 1),
            "peak_bytes": own.peak_bytes or None,
            "vector_bytes": 4 * own.dim or None,
            "dim": own.dim or None,
            "num_parameters": own.num_parameters or None,
            "licence": self.licence,
            "device": own.device,
            "precision": own.precision or None,
            "max_tokens": own.max_tokens,
            "passages_cut": own.texts_cut,
        }


def licence_of(spec: str) -> str:
    """Return the licence that a model's README or config names, or ``unknown``; "" of a baseline."""
    if spec in (WORDS, "random"):
        return ""
    folder = find_model(spec.partition("=")[2] if "=" in spec and not Path(spec).is_dir() else spec)
    fields: dict[str, Any] = {}
    if (folder / "README.md").is_file():
        fields = split_front_matter((folder / "README.md").read_text("utf-8", errors="replace"))[1]
    name = fields.get("license_name") or fields.get("license")
    if not name and (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_bytes())
        name = config.get("license") if isinstance(config, dict) else None
    return str(name) if isinstance(name, str) and name else "unknown"


def _documents(corpus: str, field: str | None, follow_links: bool) -> dict[str, str]:
    files = list_files(corpus, follow_links=follow_links)
    documents: dict[str, str] = {}
    skipped = empty = 0
    for file in files.files:
        try:
            for read in read_documents(file, field=field):
                if isinstance(read.document, Document) and read.document.text.strip():
                    documents[read.document.id] = read.document.text
                else:
                    skipped += isinstance(read.document, DataError)
                    empty += isinstance(read.document, Document)
        except DataError as error:
            skipped += 1
            warn(str(error))
    if skipped or empty:
        warn(f"{skipped:,} documents cannot be read and {empty:,} are empty: they are left out")
    return documents


def _sampled(
    documents: dict[str, str], count: int, grades: Mapping[str, Mapping[str, int]]
) -> dict[str, str]:
    kept = {id_ for of_question in grades.values() for id_ in of_question}
    others = [id_ for id_ in documents if id_ not in kept]
    room = max(0, min(len(others), count - len(kept)))
    kept |= {others[i] for i in np.random.default_rng(0).choice(len(others), room, replace=False)}
    return {id_: text for id_, text in documents.items() if id_ in kept}


def _spans(texts: Sequence[str]) -> list[np.ndarray]:
    spans = ([match.span() for match in _PIECE.finditer(text)] for text in texts)
    return [np.array(each, dtype=np.int64).reshape(-1, 2) for each in spans]


def _material(
    documents: dict[str, str], questions: dict[str, str], unjudged: bool, instruction: str, tokens: int
) -> Material:
    texts = list(documents.values())
    cuts = cut_texts(texts, _spans, max_tokens=tokens, overlap=tokens // 8)
    passages = [[text[a:b] for a, b in each] for text, each in zip(texts, cuts, strict=True)]
    own = not questions
    if own:  # a document is the question for its neighbours, by its first passage
        questions = {id_: each[0] for id_, each in zip(documents, passages, strict=True)}
    if unjudged and len(questions) > UNJUDGED_QUESTIONS:
        rows = np.random.default_rng(0).choice(len(questions), UNJUDGED_QUESTIONS, replace=False)
        questions = {id_: questions[id_] for id_ in np.array(list(questions))[np.sort(rows)].tolist()}
    material = Material(
        list(documents),
        [passage for each in passages for passage in each],
        first_rows(passages),
        questions,
        own_document=own,
        instruction=instruction,
    )
    check_material(material)
    return material


def _measure_all(models: Sequence[str], loading: Loading, material: Material) -> dict[str, Measurement]:
    """Measure each model in a process of its own, so that memory is of that model alone."""
    measured: dict[str, Measurement] = {}
    for spec in (*models, WORDS):
        say(f"measuring {spec}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
            try:
                measured[spec] = child.submit(_measure_one, spec, loading, material).result()
            except NvembedError as error:
                warn(f"{spec} could not be measured: {error}")
            except (BrokenProcessPool, MemoryError):
                warn(f"{spec} could not be measured: its process ended, probably out of memory")
    return measured


def _measure_one(spec: str, loading: Loading, material: Material) -> Measurement:
    return measure(open_model(spec, loading), material)


def _rows(
    measured: Mapping[str, Measurement],
    material: Material,
    grades: Mapping[str, Mapping[str, int]] | None,
    reference: str,
    licences: Mapping[str, str],
) -> list[Choice]:
    """Return the lines of the table, best first."""
    if grades is None and reference not in measured:
        raise InputError(f"the reference {reference} could not be measured, so nothing can be compared")
    qualities = {
        spec: agreement(own, measured[reference], material)
        if grades is None
        else judged(own, material, grades)
        for spec, own in measured.items()
    }
    order = sorted(qualities, key=lambda spec: -float(qualities[spec].values[qualities[spec].main].mean()))
    best = qualities[order[0]]
    return [
        Choice(
            "words (BM25)" if spec == WORDS else spec.partition("=")[0] if "=" in spec else Path(spec).name,
            qualities[spec],
            measured[spec],
            licences.get(spec, ""),
            None if spec == order[0] or grades is None else round(best.p_value(qualities[spec]), 4),
        )
        for spec in order
    ]


def _print(rows: Sequence[Choice], reference: str | None) -> None:
    main = rows[0].quality.main
    table = Table(
        title=None if reference is None else f"agreement with {reference}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for name in ("model", main, "95%", "p", "tok/s", "MiB", "B/vector", "licence"):
        words = name in ("model", "licence")
        table.add_column(
            name,
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
            min_width=10 if words else None,
        )
    for row in rows:
        content, interval = row.content(), row.quality.interval(main)
        speed, peak = content["tokens_per_second"], content["peak_bytes"]
        table.add_row(
            row.model,
            f"{content[main]:.3f}",
            "" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}",
            "" if row.p is None else f"{row.p:.3f}",
            "" if speed is None else f"{speed:,.0f}",
            "" if peak is None else f"{peak / 2**20:,.0f}",
            str(content["vector_bytes"] or ""),
            row.licence,
        )
    results().print(table)


def _write(rows: Sequence[Choice], out: Path, material: Material, corpus: str) -> None:
    main = rows[0].quality.main
    content = {
        "corpus": corpus,
        "documents": len(material.documents),
        "passages": len(material.passages),
        "questions": len(material.questions),
        "documents_as_questions": material.own_document,
        "models": [row.content() for row in rows],
        "environment": environment(Subject("", "")),
    }
    write_json(out / "choose.json", content)
    points = []
    for row in rows:
        own, interval = row.measurement, row.quality.interval(main) or (None, None)
        mean = float(row.quality.values[main].mean())
        points.append(Point(row.model, mean, own.tokens_per_second, own.peak_bytes, *interval))
    chart_points(points, out / "choose.png", quality=f"{main}, with 95% intervals")
    say(f"results in {out}")
