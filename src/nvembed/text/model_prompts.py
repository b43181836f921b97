"""The prompts in a model's folder, with the names of sentence-transformers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nvembed.errors import InputError
from nvembed.recipe import nearest

DOCUMENT_NAMES = ("document", "passage", "corpus")
# A query prompt with a sentence that describes the task: text before it, the sentence, text after it.
_SLOTS = (
    re.compile(r"(?s)\A(?P<before>Instruct: )(?P<instruction>[^\n]*)(?P<after>\n ?Query: ?)\Z"),
    re.compile(r"(?s)\A(?P<before>task: )(?P<instruction>[^|\n]*)(?P<after> \| query: ?)\Z"),
)
# A document prompt with a place for a title, as folders store it: without one.
_TITLE = re.compile(r"(?s)\A(?P<before>.*\btitle: )none(?P<after> \| text: ?)\Z")


def takes_titles(prompt: str) -> bool:
    """Whether a document prompt has a place for the title, such as ``title: none | text: ``."""
    return _TITLE.match(prompt) is not None


def place_titles(prompt: str, texts: Sequence[str] = (), titles: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Return the prompt and the texts to pass to a model, so that each title is in its place.

    In a prompt that has a place for it, an empty title becomes ``none``. With any other prompt the title
    goes before the text, as in BEIR. The prompt is the same for all texts.

    Raises:
        InputError: another number of titles than of texts.
    """
    if len(texts) != len(titles):
        raise InputError(
            f"{len(titles):,} titles for {len(texts):,} texts: expected one each, or an empty one"
        )
    pairs = list(zip((title.strip() for title in titles), texts, strict=True))
    match = _TITLE.match(prompt)
    if match is None:
        return prompt, [f"{title} {text}".strip() if title else text for title, text in pairs]
    return match["before"], [f"{title or 'none'}{match['after']}{text}" for title, text in pairs]


@dataclass(frozen=True)
class ModelPrompts:
    """Prompts by name, and the name of the default prompt."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def by_name(self, name: str) -> str:
        """Return the prompt called ``name``; raise InputError with the nearest names if it does not exist."""
        if name not in self.texts:
            known = nearest(name, self.texts) if self.texts else "it has none"
            raise InputError(f"the model has no prompt {name!r}: {known}")
        return self.texts[name]

    @property
    def plain(self) -> str:
        """The prompt of a text that is neither a query nor a document."""
        return "" if self.default is None else self.texts[self.default]

    def query(self, *, instruction: str | None = None, task: str | None = None) -> str:
        """Return the model's prompt of a query.

        Args:
            instruction: a sentence that describes the task, in place of the one in the model's prompt.
            task: the name of one of the model's prompts, such as ``Retrieval-query`` or ``STS``.

        Raises:
            InputError: the model's prompt has no instruction to replace, or no prompt has that name.
        """
        if task is not None:
            return self.by_name(f"{task}-query" if f"{task}-query" in self.texts else task)
        own = self.texts.get("query", "")
        if instruction is None:
            return own
        if instruction == "":
            return ""
        slots = [slot.match(own) for slot in _SLOTS]
        match = next((each for each in slots if each), None)
        if match is None:
            raise InputError(
                f"the model's query prompt, {own!r}, has no instruction to replace. Use one of its prompts "
                f"({', '.join(self.texts) or 'none'}), or pass the whole string as prompt"
            )
        if len(instruction.splitlines()) != 1 or not instruction.strip():
            raise InputError(f"the instruction is {instruction!r}; expected one line")
        return f"{match['before']}{instruction}{match['after']}"

    def document(self, *, task: str | None = None) -> str:
        """Return the prompt of a document, for one task or for all; raise InputError for an unknown task."""
        if task is not None and f"{task}-document" in self.texts:
            return self.texts[f"{task}-document"]
        if task is not None and f"{task}-query" not in self.texts:
            return self.by_name(task)
        return next((self.texts[name] for name in DOCUMENT_NAMES if name in self.texts), "")
