"""``nvembed teach``: the vectors of a recipe's teachers, computed once to disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvembed.cli.models import Loading, open_model
from nvembed.cli.options import Compute
from nvembed.cli.screen import say
from nvembed.cli.stage import changed, set_files
from nvembed.errors import ConfigError, DataError, InputError
from nvembed.files import Schema, locked, read_json, write_json
from nvembed.recipe import nearest, read_recipe
from nvembed.text.model_prompts import ModelPrompts
from nvembed.vectors.embeddings import Embeddings
from nvembed.vectors.store import Stored, VectorSettings, VectorStore, check_vectors

if TYPE_CHECKING:
    from nvembed.data.example import Example
    from nvembed.train.distil import Pair, Teacher
    from nvembed.train.recipe import StageRecipe

Encode = Callable[[Sequence[str], str], Embeddings]

TEACHERS = "teachers.json"
_CHUNK = 16_384  # texts that are sorted by prompt at a time


class TeacherRecord(Schema):
    """A model whose vectors a folder has, and everything that decides them but prompt and text."""

    fingerprint: str
    max_tokens: int
    dtype: str
    stored: Stored
    dim: int
    query_prompt: str
    document_prompt: str

    @property
    def own_prompts(self) -> tuple[str, str]:
        return self.query_prompt, self.document_prompt

    def settings(self, prompt: str) -> VectorSettings:
        return VectorSettings(self.fingerprint, prompt, self.max_tokens, self.dtype, self.stored)


class TeachersFile(Schema):
    """``teachers.json``."""

    models: dict[str, TeacherRecord]
    """Model, as the recipe names it -> its record."""


def teach(
    recipe: Path,
    /,
    *,
    data: Path,
    out: Path,
    stored: Stored = "int8",
    compute: Compute = Compute(),
    set: list[str] | None = None,
) -> None:
    """Compute the vectors of a recipe's teachers once, for training.

    With `nvembed train --vectors OUT` a step costs the student alone, and the teachers need not be on the
    machine that trains.
    Run the same command again to resume, or after a change of the data: texts that have a vector are kept.

    Examples:

        nvembed teach recipes/small-distil/stage1.toml --data data/small-distil \\
            --out vectors

        nvembed train recipes/small-distil/stage1.toml --data data/small-distil \\
            --vectors vectors --model sentence-transformers/all-MiniLM-L6-v2 \\
            --out runs/distil

    Parameters
    ----------
    recipe
        TOML file of a stage with [distil] or [teacher]; its blend is in the same folder.
    data
        Folder with the training files that `nvembed mine` made.
    out
        Folder for the vectors.
    stored
        Number format on disk: int8 has a byte for each number.
    set
        Change one value of the recipe, as section.key=value. May be repeated.
    """
    from nvembed.train.recipe import StageRecipe, own_prompts

    stage = changed(read_recipe(recipe, StageRecipe), set or [])
    if not stage.teachers:
        raise ConfigError(f"{recipe} has no teacher: add a section [distil] or [teacher]")
    files = set_files(stage, recipe, data)
    loading = Loading(stage.model.max_tokens, compute.device, compute.dtype or stage.run.dtype)
    with locked(out):
        models = _records(out) if (out / TEACHERS).exists() else {}
        for name, settings in stage.teachers.items():
            encode, record = _open(settings.model, loading, stored)
            models[settings.model] = record
            write_json(out / TEACHERS, TeachersFile(models=models))
            texts, embedded = _fill(
                out, encode, record, _reads(files, stage, name, own_prompts(settings, record.own_prompts))
            )
            say(f"{settings.model}: {texts:,} texts, {embedded:,} of them new, {record.dim:,} numbers each")
    print(f"{out}: vectors of {len(stage.teachers):,} teachers as {stored}")


def open_teachers(
    stage: "StageRecipe", vectors: Path | None, device: str
) -> tuple[dict[str, "Teacher"], dict[str, str]]:
    """Return the recipe's teachers, from stored ``vectors`` if there are any, and what identifies them."""
    if vectors is None:
        return _live_teachers(stage, device)
    if not stage.teachers:
        raise InputError("--vectors belongs to a recipe with [distil] or [teacher]: leave it out")
    return _stored_teachers(stage, vectors)


def _live_teachers(stage: "StageRecipe", device: str) -> tuple[dict[str, "Teacher"], dict[str, str]]:
    """Return the recipe's teachers, which embed each step's texts, and what identifies them."""
    from nvembed.train.distil import Teacher
    from nvembed.train.recipe import own_prompts

    loading = Loading(stage.model.max_tokens, device, stage.run.dtype)
    teachers, identity = {}, {}
    for name, settings in stage.teachers.items():
        encode, record = _open(settings.model, loading, "float32")

        teachers[name] = Teacher(
            record.dim,
            partial(_by_prompt, partial(_vectors, encode)),
            own_prompts(settings, record.own_prompts),
        )
        identity["teacher" if not name else f"teacher {name}"] = _identity(record)
    return teachers, identity


def _vectors(encode: Encode, prompt: str, texts: list[str]) -> np.ndarray:
    vectors = encode(texts, prompt).vectors
    check_vectors(vectors, texts)
    return vectors


def _stored_teachers(stage: "StageRecipe", folder: Path) -> tuple[dict[str, "Teacher"], dict[str, str]]:
    """Return the recipe's teachers as ``nvembed teach`` stored their vectors, and what identifies them.

    Raises:
        ConfigError: the folder lacks a teacher, or has it with another length of texts.
    """
    from nvembed.train.distil import Teacher
    from nvembed.train.recipe import own_prompts

    models, teachers, identity = _records(folder), {}, {}
    for name, settings in stage.teachers.items():
        record = models.get(settings.model)
        if record is None:
            raise ConfigError(
                f"{folder} has no vectors of {settings.model!r}: {nearest(settings.model, models)}; run "
                "nvembed teach with this recipe"
            )
        prompts = own_prompts(settings, record.own_prompts)
        teachers[name] = Teacher(record.dim, _lookup(folder, record), prompts)
        identity["teacher" if not name else f"teacher {name}"] = f"{_identity(record)}/{record.stored}"
    return teachers, identity


def _identity(record: TeacherRecord) -> str:
    return f"{record.fingerprint}/{record.max_tokens}/{record.dtype}"


def _records(folder: Path) -> dict[str, TeacherRecord]:
    cure = "run nvembed teach, which writes it; vectors that are there are kept"
    return dict(read_json(folder / TEACHERS, TeachersFile, cure=cure, error=ConfigError).models)


def _open(spec: str, loading: Loading, stored: Stored) -> tuple[Encode, TeacherRecord]:
    model = open_model(spec, loading)
    if model.encode is None:
        raise ConfigError(f"the teacher {model.name} has no vectors: name an embedding model")
    own = ModelPrompts(model.prompts)
    return model.encode, TeacherRecord(
        fingerprint=model.content or model.fingerprint,
        max_tokens=model.max_tokens or 0,
        dtype=model.precision,
        stored=stored,
        dim=model.dim or model.encode(["a"], "").vectors.shape[1],
        query_prompt=own.query(),
        document_prompt=own.document(),
    )


def _reads(
    files: Mapping[str, Path], stage: "StageRecipe", name: str, own_prompts: "Pair"
) -> Iterator["Pair"]:
    """Yield every (prompt, text) that a teacher reads in training; each positive is trained on in turn."""
    from nvembed.data.example import open_examples, prompts
    from nvembed.train.distil import teacher_texts

    for path in files.values():
        examples = open_examples(path)
        for example in examples:
            for each in _turns(example):
                reads = teacher_texts([each], stage, name, student_prompts=prompts, own_prompts=own_prompts)
                yield from reads.values()
        examples.close()


def _turns(example: "Example") -> Iterator["Example"]:
    for positive in example.positives:
        yield replace(example, positives=(positive,), positive_ids=())


def _fill(
    out: Path,
    encode: Encode,
    record: TeacherRecord,
    pairs: Iterator["Pair"],
) -> tuple[int, int]:
    """Embed the texts that the folder lacks; return the number of texts, and of those embedded."""
    stores: dict[str, VectorStore] = {}
    seen = embedded = 0
    while chunk := list(islice(pairs, _CHUNK)):
        by_prompt: dict[str, list[str]] = {}
        for prompt, text in dict.fromkeys(chunk):
            by_prompt.setdefault(prompt, []).append(text)
        for prompt, texts in by_prompt.items():
            if prompt not in stores:
                stores[prompt] = VectorStore(out, record.settings(prompt))
            before = len(stores[prompt])
            stores[prompt].fill(texts, partial(_embed, encode, prompt))
            embedded += len(stores[prompt]) - before
        seen += len(chunk)
        say(f"{seen:,} texts")
    return sum(map(len, stores.values())), embedded


def _embed(encode: Encode, prompt: str, texts: list[str]) -> Embeddings:
    return encode(texts, prompt)


def _lookup(folder: Path, record: TeacherRecord) -> Callable[[Sequence["Pair"]], np.ndarray]:
    stores: dict[str, VectorStore] = {}

    def missing(texts: list[str]) -> Embeddings:
        raise DataError(
            f"{folder} has no vector of {len(texts):,} texts, the first of them {texts[0][:60]!r}: run "
            "nvembed teach with the same recipe and data"
        )

    def read(prompt: str, texts: list[str]) -> np.ndarray:
        if prompt not in stores:
            stores[prompt] = VectorStore(folder, record.settings(prompt))
        return stores[prompt].read(stores[prompt].fill(texts, missing)).vectors

    return partial(_by_prompt, read)


def _by_prompt(embed: Callable[[str, list[str]], np.ndarray], pairs: Sequence["Pair"]) -> np.ndarray:
    """Return the vectors of (prompt, text) pairs in their order; ``embed`` gets the texts of one prompt."""
    rows: dict[str, list[int]] = {}
    for row, (prompt, _) in enumerate(pairs):
        rows.setdefault(prompt, []).append(row)
    order = [row for own in rows.values() for row in own]
    parts = [embed(prompt, [pairs[row][1] for row in own]) for prompt, own in rows.items()]
    return np.asarray(np.concatenate(parts)[np.argsort(order)])
