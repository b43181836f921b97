"""Distillation in the training loop: the teachers' vectors of a step, and projections into their spaces.

Shapes: U distinct texts, D hidden size, E the teacher's dimensions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nvembed.data.example import Example, prompts
from nvembed.errors import ConfigError
from nvembed.model.nv_embed import NVEmbed
from nvembed.train.loss import Guide, Target
from nvembed.train.recipe import DistilSection, StageRecipe, TeacherModel

PROJECTIONS = "projections."
JOINED = "joined"
Pair = tuple[str, str]  # prompt, text
Prompts = Callable[[Example], tuple[str, str]]


@dataclass(frozen=True)
class Teacher:
    """A teacher of a training run.

    Attributes:
        dim: numbers of a vector.
        teach: (prompt, text) pairs -> unit vectors (n, E) float32. It is called from a thread that reads
            ahead.
        own_prompts: the query and the document prompt of the teacher's folder.
    """

    dim: int
    teach: Callable[[Sequence[Pair]], np.ndarray]
    own_prompts: Pair = ("", "")


def own(query: str, document: str) -> Prompts:
    """Return what gives an example a model's own prompts: both sides of a symmetric task are queries."""
    return lambda example: (query, query if example.both_sides else document)


def prompts_of(settings: TeacherModel, own_prompts: Pair) -> Prompts:
    """Return what gives an example the prompts that a teacher reads."""
    if settings.own_prompts:
        return own(*own_prompts)
    return prompts if settings.instruct else lambda _: ("", "")


def texts_of(
    example: Example, student: Prompts, teacher: Prompts, *, negatives: int, translated: bool
) -> Iterator[tuple[Pair, Pair]]:
    """Yield each text of an example as the student reads it, and as the teacher does.

    Args:
        negatives: most hard negatives.
        translated: the positive is a translation of the query: the teacher reads the query for both.
    """
    (own_query, own_passage), (query, passage) = student(example), teacher(example)
    yield (own_query, example.query), (query, example.query)
    positive = example.positives[0]
    yield (own_passage, positive), ((query, example.query) if translated else (passage, positive))
    for text in example.hard_negatives[:negatives]:
        yield (own_passage, text), (passage, text)


def teacher_texts(
    examples: Iterable[Example],
    recipe: StageRecipe,
    name: str,
    *,
    student_prompts: Prompts,
    own_prompts: Pair,
) -> dict[Pair, Pair]:
    """Return, for every (prompt, text) of the examples, what teacher ``name`` of the recipe reads instead.

    A text that occurs in several roles has the first one.
    """
    texts: dict[Pair, Pair] = {}
    translations = () if recipe.distil is None or not name else recipe.distil.translations
    for example in examples:
        for pair, read in texts_of(
            example,
            student_prompts,
            prompts_of(recipe.teachers[name], own_prompts),
            negatives=recipe.batch.hard_negatives,
            translated=example.task in translations,
        ):
            texts.setdefault(pair, read)
    return texts


def add_projections(
    model: NVEmbed, distil: DistilSection, teachers: Mapping[str, Teacher], seed: int
) -> None:
    """Add a trained projection (E, D) float32 for every teacher, or one for all of them joined.

    Its first values are orthogonal rows or columns, as ``seed`` decides.
    """
    dims = {name: teachers[name].dim for name in distil.teachers}
    if distil.joined:
        dims = {JOINED: sum(dims.values())}
    projections = nn.ParameterDict()
    generator = torch.Generator().manual_seed(seed)
    for name, dim in sorted(dims.items()):
        value = nn.init.orthogonal_(torch.empty(dim, model.config.dim), generator=generator)
        projections[f"to_{name}"] = nn.Parameter(value.to(model.device))  # no name of a module's own
    model.add_module(PROJECTIONS.removesuffix("."), projections)


def guide_of(recipe: StageRecipe, vectors: Mapping[str, Tensor]) -> Guide | None:
    """Return the teacher of ``[teacher]`` with its vectors (U, E)."""
    section = recipe.teacher
    return None if section is None else Guide(vectors[""], section.weight, section.temperature)


def targets_of(
    model: NVEmbed, distil: DistilSection | None, vectors: Mapping[str, Tensor]
) -> tuple[Target, ...]:
    """Return what the projected vectors of a step are compared with.

    Joined vectors are unit vectors: each teacher's is multiplied by the square root of its share of the
    weights.
    """
    if distil is None:
        return ()
    weights = {name: teacher.weight for name, teacher in distil.teachers.items()}
    if distil.joined:
        total = sum(weights.values())
        parts = [vectors[name] * (weight / total) ** 0.5 for name, weight in weights.items()]
        vectors, weights = {JOINED: torch.cat(parts, dim=1)}, {JOINED: total}
    return tuple(
        Target(
            vectors[name],
            model.get_parameter(f"{PROJECTIONS}to_{name}"),
            weight * distil.cosine,
            weight * distil.squared,
        )
        for name, weight in weights.items()
    )


def vectors_of(teacher: Teacher, texts: Sequence[Pair], reads: Mapping[Pair, Pair]) -> Tensor:
    """Return the teacher's vectors (n, E) of texts, each as ``reads`` says."""
    if not texts:
        return torch.zeros(0, teacher.dim)
    vectors = torch.from_numpy(teacher.teach([reads[pair] for pair in texts]))
    if vectors.shape != (len(texts), teacher.dim):
        raise ConfigError(
            f"the teacher returned vectors of shape {tuple(vectors.shape)}; expected "
            f"({len(texts)}, {teacher.dim})"
        )
    return vectors
