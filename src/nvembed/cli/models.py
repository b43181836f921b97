"""Models for commands: the one place where a command loads one, and how it embeds with it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvembed.cli.options import Dtype
from nvembed.cli.screen import waiting
from nvembed.errors import DownloadError, InputError, MissingExtraError, WeightsError

if TYPE_CHECKING:
    from nvembed.encoder import Encoder
    from nvembed.vectors.embeddings import Embeddings


def load(
    model: str, *, device: str | None = None, dtype: Dtype | None = None, revision: str | None = None
) -> "Encoder":
    """Load a model from a folder or the hub; ``device`` may name several, parted by commas."""
    devices = device.split(",") if device else None
    with waiting(f"loading {model}"):
        from nvembed.encoder import Encoder  # torch takes seconds to import

        return Encoder.from_pretrained(model, device=devices, dtype=dtype, revision=revision)


def load_sentence_transformer(
    model: str, *, max_tokens: int, device: str | None = None, dtype: str | None = None
) -> Any:
    """Load a folder or hub id with sentence-transformers; ``max_seq_length`` becomes ``max_tokens`` at most.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        DownloadError: no such folder, and the hub did not give the model.
        WeightsError: the folder does not hold a whole model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(
            f"{model} is a sentence-transformers model: pip install 'nvembed[eval]' to load it"
        ) from error
    try:
        loaded = SentenceTransformer(model, device=device, model_kwargs={"dtype": dtype} if dtype else None)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        if Path(model).is_dir():
            raise WeightsError(f"{model}: not a whole model of sentence-transformers: {said}") from error
        raise DownloadError(
            f"{model}: no folder of that name, and not loaded from the hub ({said}): give a folder with the "
            "model, or try again online"
        ) from error
    loaded.max_seq_length = min(loaded.max_seq_length or max_tokens, max_tokens)
    return loaded


def encode_with(sentence_transformer: Any, texts: Sequence[str], prompt: str) -> np.ndarray:
    """Return float32 (n, d) unit rows of a model that ``load_sentence_transformer`` loaded."""
    vectors = sentence_transformer.encode(
        list(texts),
        prompt=prompt or None,
        batch_size=32 if sentence_transformer.device.type == "cpu" else 256,  # 32 leaves a GPU idle
        normalize_embeddings=True,
        show_progress_bar=False,
    )
    vectors = np.asarray(vectors, dtype=np.float32)
    # It normalises in the model's own precision, which in bfloat16 leaves lengths of 1.003.
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def prompts(
    *, task: str | None = None, instruction: str | None = None, prompt: str | None = None
) -> tuple[str, str]:
    """Return the prompt of queries and that of passages, from at most one of the three.

    Raises:
        InputError: several of them, or a task without an instruction.
    """
    from nvembed.text.prompt import format_prompt, instruction_for

    given = {"--task": task, "--instruction": instruction, "--prompt": prompt}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} are both given; expected at most one: each sets the prompt")
    if task is not None:
        return format_prompt(instruction_for(task)), format_prompt(instruction_for(task, "corpus"))
    if instruction is not None:
        return format_prompt(instruction), ""
    return prompt or "", ""


@dataclass
class Tally:
    """What became of the texts that passed through ``counted``."""

    texts: int = 0
    tokens: int = 0
    cut: int = 0
    empty: int = 0

    def message(self, seconds: float) -> str:
        speed = self.tokens / max(seconds, 1e-9)
        return f"{self.texts:,} texts, {self.tokens:,} tokens in {seconds:.1f} s ({speed:,.0f} tokens/s)"


def counted(parts: Iterable["Embeddings"], tally: Tally) -> Iterator[np.ndarray]:
    """Yield the vectors of each part and count texts, tokens, cuts and empty texts."""
    for part in parts:
        tally.texts += len(part.vectors)
        tally.tokens += int(part.num_tokens.sum())
        tally.cut += int(part.truncated.sum())
        tally.empty += int(part.empty.sum())
        yield part.vectors
