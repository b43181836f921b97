"""Options that several commands share, written once. Each dataclass becomes a panel of ``--help``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from nvembed.errors import InputError
from nvembed.recipe import nearest

StoredDtype = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["float32", "bfloat16", "float16", "int8", "int4", "fp8"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Flag = Annotated[bool, Parameter(negative=())]
# A name, or "-" for standard input or output, which would otherwise be taken for an option.
Dash = Annotated[str, Parameter(allow_leading_hyphen=True)]
# The server that stores an index's passages: always named by the user, never followed from the index's
# folder.
IndexServer = Annotated[str, Parameter(env_var="NVEMBED_INDEX_SERVER", show_env_var=False)]


def named_instructions(entries: Sequence[str], tasks: Iterable[str]) -> dict[str, str]:
    """Return the instructions of ``--instruction TASK=INSTRUCTION``, by task."""
    pairs = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    if len(pairs) != len(entries):
        raise InputError(f"--instruction {list(entries)}: expected TASK=INSTRUCTION, each task once")
    for name in pairs:
        if name not in tasks:
            raise InputError(f"--instruction names {name!r}, which is not evaluated: {nearest(name, tasks)}")
    return pairs


def _panel(title: str, sort_key: int) -> Callable[[type], type]:
    return Parameter(name="*", group=Group(title, sort_key=sort_key))


@_panel("Computation", 30)
@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how a model computes."""

    device: str | None = None
    """Device: cpu, cuda, cuda:1, or several separated by commas. Default: cuda if available."""
    dtype: Dtype | None = None
    """Number format. int8: products in 8 bits; int4: weights of 4 bits; fp8: products in FP8, on GPUs
    that have them. Default: bfloat16 on CUDA, float32 on CPU."""


@_panel("Computation", 30)
@dataclass(frozen=True, kw_only=True)
class CompiledCompute(Compute):
    """The same, for commands that embed enough to compile the layers first."""

    compiled: Flag = False
    """Compile the layers at the first batches, which takes minutes."""


@_panel("Prompt", 20)
@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The string before each text. At most one of these."""

    task: str | None = None
    """Task with a known instruction, such as NQ or Banking77Classification."""
    instruction: str | None = None
    """Sentence that describes the task; each text becomes "Instruct: INSTRUCTION\\nQuery: TEXT"."""
    prompt: str | None = None
    """Exact string to prepend to each text."""


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How the files of a corpus are read."""

    field: str | None = None
    """Field with the text, in files that have fields. Default: "text", with "title" before it."""
    delimiter: str | None = None
    """Character between the columns of .csv and .tsv files, or tab. Default: that of the header."""
    encoding: str | None = None
    """Encoding of JSONL, CSV, TSV and line files, such as cp1252. Default: UTF-8."""


@_panel("Reading", 10)
@dataclass(frozen=True, kw_only=True)
class Reading(FileOptions):
    """How a corpus is read, embedded and cached."""

    follow_links: Flag = False
    """Read files of the folder that are symbolic links."""
    max_length: Count | None = None
    """Most tokens read of one text, prompt included. Default: the model's limit."""
    cache: Path | None = None
    """Folder for the vectors. Default: .nvembed beside the corpus."""


@_panel("Folder", 10)
@dataclass(frozen=True, kw_only=True)
class FolderOptions(FileOptions):
    """How `nvembed index FOLDER` reads, cuts and embeds documents; an index keeps these settings."""

    follow_links: Flag = False
    """Read files of the folder that are symbolic links."""
    chunk_tokens: Count | None = None
    """Most tokens of a passage. Default: 512."""
    context: Literal["none", "title", "headings"] = "none"
    """Text to put before each passage for the model: none, its document's title, or title and headings."""
    max_length: Count | None = None
    """Most tokens read of one passage, prompt included. Default: the model's limit."""


@_panel("Input", 10)
@dataclass(frozen=True, kw_only=True)
class InputOptions(FileOptions):
    """How a file of texts is read."""

    input_format: Literal["txt", "jsonl", "csv", "tsv", "parquet", "arrow"] | None = None
    """Format of the input. Default: by its name; of standard input, txt."""


@_panel("Corpus", 10)
@dataclass(frozen=True, kw_only=True)
class CorpusOptions(FileOptions):
    """How a corpus is read for `nvembed embed`."""

    follow_links: Flag = False
    """Read files of the folder that are symbolic links."""
    on_error: Literal["stop", "skip"] = "stop"
    """Stop when files or records cannot be read, or skip them and list them in manifest.json."""
    config: str | None = None
    """Configuration of a data set of the hub."""
    split: str = "train"
    """Split of a data set of the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub."""
