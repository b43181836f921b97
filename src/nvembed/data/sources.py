"""``blend.toml``: the sources of training records, and the evaluation texts to keep out of them.

A source says which rows to read and what form they have; ``read.read_source`` turns them into examples.

    pairs    query and positive, perhaps negatives
    qrels    the BEIR layout: corpus, queries, and qrels that join them
    ids      query and the list of its passages' ids, with a corpus
    nli      premise, hypothesis, label: entailments are positives, contradictions of the premise negatives
    scores   two texts and a similarity: pairs of ``min_score`` or more, in both directions
    label    text and label; the passages are the label texts
    example  text and label; the passages are other texts
    text     unlabelled text, in rows or in a folder of documents: a sentence, and the passage it was cut from
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from nvembed.errors import InputError
from nvembed.recipe import Recipe, nearest
from nvembed.text.prompt import format_prompt, instruction_for, training_instructions

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

# The default column of a role; the others have the role's own name.
COLUMNS = {"id": "_id", "query_id": "query-id", "passage_id": "corpus-id", "grade": "score"}


class CorpusPlace(Recipe):
    """The table of passages of forms ``qrels`` and ``ids``."""

    hub: str = ""
    """A data set of the hub, ``owner/name``. Default: the source's own."""
    config: str
    split: str
    revision: str = ""


class DataPlace(Recipe):
    """Where rows are: a data set of the hub, or a local file or folder."""

    hub: str = ""
    """A data set of the hub, ``owner/name``; either this or ``path``."""
    path: str = ""
    """A .jsonl, .jsonl.gz or .parquet file below --root; for form ``qrels`` a folder in BEIR's layout, for
    form ``text`` also a document or a folder of them."""
    config: str = ""
    """The hub's name of a part of the data set."""
    revision: str = ""
    """A commit of the hub's data set, or ``main``."""


class TrainingSource(DataPlace):
    """``[sets.NAME]``: one training set: its place, the form of its rows, and how much of it is used."""

    form: Form
    """What a row contains; see the list of forms."""
    task: str = ""
    """Name of the task, which decides the instruction. Default: the set's name."""
    instruction: str | None = None
    """Instruction of the queries, for your own task; "" for none. Default: the task's."""
    passage_instruction: str | None = None
    """Instruction of the passages. Default: that of the queries for forms ``scores`` and ``example``."""
    licence: str = ""
    """Licence of the data, for the record."""
    samples: int | None = Field(default=None, gt=0)
    """Examples drawn per pass, at random; if there are fewer, some more than once. Default: each once."""
    stages: tuple[int, ...] = Field(default=(1, 2), min_length=1)
    """The stages that train on the set. Default: both."""
    split: str = "train"
    """The split; of a local folder the qrels file."""
    rows: int | None = None
    """Number of rows of the split; another number is an error. Default: not checked."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column, for columns whose name differs from the role."""
    corpus: CorpusPlace = CorpusPlace(config="corpus", split="corpus")
    """Where the passages are, for forms ``qrels`` and ``ids``."""
    keep: dict[str, str] = Field(default_factory=dict)
    """Column -> the value (as text) that a row must have to be read."""
    label_texts: dict[str, str] = Field(default_factory=dict)
    """Form ``label``: label -> text of the passage. Default: the labels themselves."""
    min_score: float = 4.0
    """Form ``scores``: the similarity from which a pair is a positive."""
    min_grade: int = 1
    """Form ``qrels``: the grade from which a passage is a positive."""
    mine: bool = True
    """Mine hard negatives from the passages of the set; false: the set has or makes its own."""

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
        if self.task:
            self.check_instructions()
        return self

    def check_instructions(self) -> None:
        """Refuse a task without an instruction, and an instruction that cannot be in a prompt.

        Raises:
            ValueError: the message begins with what was expected.
        """
        try:
            self.prompts()
        except InputError as error:
            if self.instruction is None:
                hint = 'instruction = "..." for a task of your own, or the name of a known task'
                raise ValueError(f"{hint} ({error})") from error
            raise ValueError(f"a valid instruction: {error}") from error

    def prompts(self) -> tuple[str, str]:
        """Return the prompts that a teacher gets for queries and for passages.

        A task with several templates has its first one. Passages of scored pairs have the instruction of the
        queries, as in training.
        """
        query, passage = self.instruction, self.passage_instruction
        if passage is None:
            passage = ""
            if self.form == "scores":
                passage = instruction_for(self.task, "corpus") if query is None else query
        if query is None:
            query = training_instructions(self.task)[0]
        return format_prompt(query), format_prompt(passage)


class HeldOutSet(DataPlace):
    """``[held_out.NAME]``: an evaluation set. Training records that contain a record of it are left out."""

    form: Literal["rows", "qrels"] = "rows"
    """Rows of a table; or the queries that the qrels of ``split`` judge."""
    columns: tuple[str, ...] = Field(default=("text",), min_length=1)
    """The texts that make up a record; of a column of lists, each text is a record."""
    split: str = "test"
    """The split; of a local folder the qrels file."""


def _is_file_name(name: str) -> bool:
    """Whether the files of a set can have its name, on every system, beside those of other sets."""
    odd = not name.strip() or name.startswith(".") or name.endswith(".chosen") or len(name.encode()) > 200
    return not odd and name.isprintable() and not set(name) & set('/\\:*?"<>|')


class BlendRecipe(Recipe):
    """``blend.toml``: the training sets of a model, and the evaluation sets to keep out of them."""

    seed: int = Field(ge=0)
    """Seed of every random choice."""
    held_out: dict[str, HeldOutSet] = Field(default_factory=dict)
    """Name -> evaluation set."""
    sets: dict[str, TrainingSource] = Field(min_length=1)
    """Name -> training set. The name becomes a file's name."""

    @model_validator(mode="after")
    def _sets_have_names_and_tasks(self) -> Self:
        sets = {}
        for name, source in self.sets.items():
            if not _is_file_name(name):
                raise ValueError(f"names of sets that can be names of files, got {name!r}")
            sets[name] = source if source.task else source.model_copy(update={"task": name})
            try:
                sets[name].check_instructions()
            except ValueError as error:
                raise ValueError(f"in [sets.{name}] {error}") from error
        return self if sets == self.sets else self.model_copy(update={"sets": sets})

    def of_stage(self, stage: int) -> dict[str, TrainingSource]:
        """Return the sets of one stage.

        Raises:
            InputError: there are none.
        """
        if chosen := {name: source for name, source in self.sets.items() if stage in source.stages}:
            return chosen
        stages = sorted({each for source in self.sets.values() for each in source.stages})
        raise InputError(f"the blend has no set of stage {stage}; its stages: {', '.join(map(str, stages))}")

    def choose(self, names: list[str] | None, stage: int | None = None) -> dict[str, TrainingSource]:
        """Return the sets of these names, or all; of one stage only, if one is named.

        Raises:
            InputError: no set of a name, or of the stage.
        """
        known = self.sets if stage is None else self.of_stage(stage)
        for name in names or ():
            if name not in known:
                raise InputError(f"the blend has no set {name!r}: {nearest(name, known)}")
        return {name: known[name] for name in names or known}
