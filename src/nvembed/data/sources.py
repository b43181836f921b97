"""Where training records come from: data sets of the hub, or local files, each described in a recipe.

A source says which rows to read and what form they have; ``read.read_source`` turns them into examples.

    pairs    query and positive, perhaps negatives
    qrels    the BEIR layout: corpus, queries, and qrels that join them
    ids      query and the list of its passages' ids, with a corpus
    nli      premise, hypothesis, label: entailments are positives, contradictions of the premise negatives
    scores   two texts and a similarity: pairs of ``min_score`` or more, in both directions
    label    text and label; the passages are the label texts
    example  text and label; the passages are other texts
    text     unlabelled text: a sentence, and the passage it stood in
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from nvembed.recipe import Recipe, nearest

Form = Literal["pairs", "qrels", "ids", "nli", "scores", "label", "example", "text"]

# form -> the roles that its columns must and may play
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pairs": (("query", "positive"), ("negatives", "query_title", "positive_title")),
    "qrels": (("id", "text", "query_id", "passage_id", "grade"), ("title",)),
    "ids": (("query", "passage_ids", "id", "text"), ("title",)),
    "nli": (("premise", "hypothesis", "label"), ()),
    "scores": (("text1", "text2", "score"), ()),
    "label": (("text", "label"), ("title",)),
    "example": (("text", "label"), ("title",)),
    "text": (("text",), ()),
}

# the column that plays a role unless the recipe names another; else it has the role's own name
COLUMNS = {"id": "_id", "query_id": "query-id", "passage_id": "corpus-id", "grade": "score"}


class CorpusPlace(Recipe):
    """Where the passages of form ``ids`` are, if it is another data set of the hub, and its table of them."""

    hub: str = ""
    config: str
    split: str
    revision: str = ""


class Source(Recipe):
    """One training set: where it is, what its rows look like, and how much of it is used."""

    task: str
    form: Form
    licence: str
    samples: int = Field(gt=0)
    """How many examples the blend draws."""
    stages: tuple[int, ...]
    """The stages that train on it."""
    hub: str = ""
    """A data set of the hub, ``owner/name``; or else ``path``."""
    path: str = ""
    """A local file, or for qrels a folder, below the root that is given when reading."""
    config: str = ""
    revision: str = ""
    split: str = "train"
    rows: int | None = None
    """How many rows the split is known to have; another number is an error. Unknown: left out."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column, where the column has another name than the role."""
    corpus: CorpusPlace = CorpusPlace(config="corpus", split="corpus")
    """Forms ``qrels`` and ``ids``."""
    keep: dict[str, str] = Field(default_factory=dict)
    """Column -> the value (as text) that a row must have to be read."""
    label_texts: dict[str, str] = Field(default_factory=dict)
    """Form ``label``: value of the label -> text of the passage; none: the labels themselves are texts."""
    min_score: float = 4.0
    min_grade: int = 1
    mine: bool = True
    """Hard negatives are mined from the passages of the set; else the set brings or makes its own."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.hub) == bool(self.path):
            raise ValueError(f"either hub or path, got hub={self.hub!r} and path={self.path!r}")
        if self.hub and not self.revision:
            raise ValueError("a revision of the hub's data set ('main' if none can be pinned)")
        must, may = ROLES[self.form]
        for role in self.columns.keys() - {*must, *may}:
            raise ValueError(f"roles of form {self.form!r}, got {role!r}: {nearest(role, [*must, *may])}")
        if self.label_texts and self.form != "label":
            raise ValueError(f"label_texts only with form 'label', got form {self.form!r}")
        if self.mine and self.form in ("label", "example"):
            raise ValueError(f"mine = false with form {self.form!r}, which makes its own negatives")
        return self


class HeldOutSet(Recipe):
    """A set that is evaluated on: training records that contain one of its records are left out."""

    form: Literal["rows", "qrels"] = "rows"
    """Rows of a table; or the queries that the qrels of ``split`` judge."""
    columns: tuple[str, ...] = ("text",)
    """The texts that make up a record; of a column of lists, each text is a record."""
    hub: str = ""
    path: str = ""
    config: str = ""
    revision: str = ""
    split: str = "test"


class BlendRecipe(Recipe):
    """``blend.toml``: every training set of a model, by name, and what must not be among them."""

    seed: int = Field(ge=0)
    held_out: dict[str, HeldOutSet] = Field(default_factory=dict)
    sets: dict[str, Source] = Field(min_length=1)

    def of_stage(self, stage: int) -> dict[str, Source]:
        return {name: source for name, source in self.sets.items() if stage in source.stages}
