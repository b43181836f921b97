"""``nvembed encode``: embed the texts of a file."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np

from nvembed.cli.models import Tally, counted, load, symmetric_prompt
from nvembed.cli.options import CompiledCompute, Count, Dash, InputOptions, Prompt
from nvembed.cli.screen import say, warn
from nvembed.embed.write import output_format, write_jsonl, write_vectors
from nvembed.errors import InputError
from nvembed.indexing.models import own_prompts
from nvembed.read.beir import Passage, read_stream, read_texts
from nvembed.read.lines import TextLayout
from nvembed.text.model_prompts import place_titles, takes_titles


def encode(
    model: str,
    input: Dash,
    out: Dash,
    /,
    *,
    format: Literal["npy", "parquet", "jsonl"] | None = None,
    truncate: bool = True,
    max_length: Count | None = None,
    truncate_dim: Count | None = None,
    batch_tokens: Count | None = None,
    options: InputOptions = InputOptions(),
    prompt: Prompt = Prompt(),
    compute: CompiledCompute = CompiledCompute(),
) -> None:
    """Embed the texts of a file.

    The output has one unit vector (float32) per text, in the order of the texts. An interrupted command
    leaves no output. Without a prompt NV-Embed embeds passages; for queries, pass their task or instruction.
    A model with prompts of its own uses its default prompt; --task query and --task document select others.

    Examples:

        nvembed encode nvidia/NV-Embed-v2 passages.jsonl passages.npy

        nvembed encode MODEL questions.txt questions.parquet --task NQ

        zcat posts.csv.gz | \\
            nvembed encode MODEL - posts.npy --input-format csv --field body

        nvembed encode MODEL texts.txt - --format jsonl | head -n 3

    Parameters
    ----------
    model
        Model: a folder or a hub id.
    input
        A .txt file (one text per line), .jsonl, .csv, .tsv, .parquet or .arrow; "-" is standard input.
    out
        A .npy, .parquet (id, text, vector) or .jsonl file; "-" writes JSON lines to standard output.
    format
        Format of the output. Default: by its name.
    truncate
        Cut texts that are too long, and report how many. --no-truncate: refuse them.
    max_length
        Most tokens read of one text, prompt included. Default: the model's limit.
    truncate_dim
        Keep only the first dimensions, of a model that was trained for it.
    batch_tokens
        Tokens computed at a time. Default: chosen from the free memory.
    """
    input, out = (str(Path(path).expanduser()) for path in (input, out))
    _check_output(out, format, input)
    passages = _passages(input, options)
    text_prompt = symmetric_prompt(prompt, own_prompts(model))
    first = next(passages)  # faults of the input are reported before a model is loaded
    encoder = load(model, device=compute.device, dtype=compute.dtype, compiled=compute.compiled)
    tally = Tally()
    waiting: deque[Passage] = deque()  # read, and not yet embedded: one or two windows of the encoder
    start = perf_counter()
    parts = encoder.stream(
        _texts(first, passages, waiting, text_prompt),
        prompt=place_titles(text_prompt)[0],
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
        made_by = {"model": model, "fingerprint": encoder.fingerprint, "prompt": text_prompt}
        write_vectors(out, blocks, format=format, metadata=made_by)
    say(tally.message(perf_counter() - start) + (f" -> {out}" if out != "-" else ""))
    limit = max_length or encoder.max_length
    for count, what in (
        (tally.cut, f"were cut to {limit:,} tokens"),
        (tally.empty, "are empty; their vectors are meaningless"),
    ):
        if count:
            warn(f"{count:,} of {tally.texts:,} texts {what}")


def _check_output(out: str, format: str | None, source: str) -> None:
    if out == "-":
        if format not in (None, "jsonl"):
            raise InputError(f"--format is {format}; expected jsonl for standard output, or a file's name")
        return
    if format is None:
        output_format(Path(out))
    if source != "-" and Path(source).is_file() and Path(out).exists() and Path(out).samefile(source):
        raise InputError(f"{out} is also the input, which would be overwritten: use another file name")


def _passages(source: str, options: InputOptions) -> Iterator[Passage]:
    layout = TextLayout(options.delimiter, options.encoding)
    if source == "-":
        kind = options.input_format or "txt"
        return read_stream(sys.stdin.buffer, format=kind, field=options.field, layout=layout)
    return read_texts(source, format=options.input_format, field=options.field, layout=layout)


def _texts(first: Passage, rest: Iterator[Passage], waiting: deque[Passage], prompt: str) -> Iterator[str]:
    """Yield what the model reads behind the prompt, which may have a place for titles."""
    slot = takes_titles(prompt)
    for passage in chain([first], rest):
        waiting.append(passage)
        if slot:
            yield from place_titles(prompt, [passage.text[passage.body_start :]], [passage.title])[1]
        else:
            yield passage.text


def _print(blocks: Iterable[tuple[list[Passage], np.ndarray]]) -> None:
    for passages, vectors in blocks:
        write_jsonl(sys.stdout.buffer, passages, vectors)
        sys.stdout.buffer.flush()
