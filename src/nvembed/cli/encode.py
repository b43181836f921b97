"""``nvembed encode``: texts of a file in, vectors out."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np

from nvembed.cli.models import Tally, counted, load, prompts
from nvembed.cli.options import Dash, Dtype
from nvembed.cli.screen import say, warn
from nvembed.embed.write import output_format, write_jsonl, write_vectors
from nvembed.errors import InputError
from nvembed.read.beir import Passage, read_stream, read_texts


def encode(
    model: str,
    input: Dash,
    out: Dash,
    /,
    *,
    format: Literal["npy", "parquet", "jsonl"] | None = None,
    input_format: Literal["txt", "jsonl", "csv", "tsv", "parquet"] | None = None,
    field: str | None = None,
    instruction: str | None = None,
    task: str | None = None,
    prompt: str | None = None,
    max_length: int | None = None,
    truncate: bool = True,
    truncate_dim: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    batch_tokens: int | None = None,
) -> None:
    """Embed the texts of a file.

    Vectors come in the order of the texts, as unit rows of float32. The output is written whole or not at
    all. Without a prompt, texts are embedded as passages; queries need the instruction of their task.

    Examples:

        nvembed encode nvidia/NV-Embed-v2 passages.jsonl passages.npy

        nvembed encode MODEL questions.txt questions.parquet --task NQ

        zcat posts.csv.gz | nvembed encode MODEL - posts.npy --input-format csv --field body

        nvembed encode MODEL texts.txt - --format jsonl | head -n 3

    Parameters
    ----------
    model
        A checkpoint folder, or a hub id.
    input
        A .txt (one text per line), .jsonl, .csv, .tsv or .parquet file; "-" is standard input.
    out
        A .npy, .parquet (id, text, vector) or .jsonl file; "-" writes JSON lines to standard output.
    format
        The output's format, where its name does not tell.
    input_format
        The input's format, where its name does not tell; standard input is txt unless given.
    field
        The field or column that holds the text; "text", with a "title" before it, unless given.
    instruction
        The sentence that describes the task: each text is read behind "Instruct: ...\\nQuery: ".
    task
        A task whose instruction is known, such as NQ or Banking77Classification.
    prompt
        The whole string to put before each text.
    max_length
        The most tokens to read of one text; the model's own limit unless given.
    truncate
        Cut longer texts, and say how many; --no-truncate refuses them.
    truncate_dim
        Keep this many dimensions (only of a model trained for it).
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    batch_tokens
        Tokens to compute at a time; chosen from the free memory unless given.
    """
    input, out = (str(Path(path).expanduser()) for path in (input, out))
    _check_output(out, format, input)
    passages = _passages(input, input_format, field)
    query_prompt, _ = prompts(task=task, instruction=instruction, prompt=prompt)
    first = next(passages)  # what is wrong with the input is said before a model is loaded
    encoder = load(model, device=device, dtype=dtype)
    tally = Tally()
    waiting: deque[Passage] = deque()  # read, and not yet embedded: a window of the encoder or two
    start = perf_counter()
    parts = encoder.stream(
        _texts(first, passages, waiting),
        prompt=query_prompt,
        max_length=max_length,
        truncate=truncate,
        truncate_dim=truncate_dim,
        batch_tokens=batch_tokens,
        show_progress=sys.stderr.isatty(),
    )
    blocks = (([waiting.popleft() for _ in vectors], vectors) for vectors in counted(parts, tally))
    if out == "-":
        _print(blocks)
    else:
        made_by = {"model": model, "fingerprint": encoder.fingerprint, "prompt": query_prompt}
        write_vectors(out, blocks, format=format, metadata=made_by)
    say(tally.message(perf_counter() - start) + (f" -> {out}" if out != "-" else ""))
    limit = max_length or encoder.max_length
    for count, what in (
        (tally.cut, f"were cut to {limit:,} tokens"),
        (tally.empty, "are empty: their vectors say nothing"),
    ):
        if count:
            message = f"{count:,} of {tally.texts:,} texts {what}"
            warn(message)


def _check_output(out: str, format: str | None, source: str) -> None:
    if out == "-":
        if format not in (None, "jsonl"):
            raise InputError(f"standard output takes jsonl only, not {format}: give a file name")
        return
    if format is None:
        output_format(Path(out))
    if source != "-" and Path(source).is_file() and Path(out).exists() and Path(out).samefile(source):
        raise InputError(f"{out} is the input, which would be lost: give another file name")


def _passages(source: str, format: str | None, field: str | None) -> Iterator[Passage]:
    if source == "-":
        return read_stream(sys.stdin.buffer, format=format or "txt", field=field)
    return read_texts(source, format=format, field=field)


def _texts(first: Passage, rest: Iterator[Passage], waiting: deque[Passage]) -> Iterator[str]:
    passage: Passage | None = first
    while passage is not None:
        waiting.append(passage)
        yield passage.text
        passage = next(rest, None)


def _print(blocks: Iterable[tuple[list[Passage], np.ndarray]]) -> None:
    for passages, vectors in blocks:
        write_jsonl(sys.stdout.buffer, passages, vectors)
        sys.stdout.buffer.flush()
