"""``nvembed check``: is this model whole, does it fit here, what may it be used for, is its answer right?"""

from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nvembed.encoder import Encoder
from nvembed.model.device import parse_devices
from nvembed.weights.check import Advance, Finding, Report, bytes_text, check_folder, shards_bytes
from nvembed.weights.hub import model_folder
from nvembed.weights.known import ask

Dtype = Literal["float32", "bfloat16", "float16"]
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def check(
    model: str,
    *,
    device: str | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
    hash: bool = False,
    known_answer: bool | None = None,
    json: bool = False,
) -> None:
    """Check a model: files, tensors, values, tokenizer, memory, licence and known answer.

    Exits with 1 if anything failed. Examples:

        nvembed check nvidia/NV-Embed-v2 --device cuda --hash

        nvembed check ./my-model --dtype bfloat16 --json

    Args:
        model: a folder, or a hub id, which is fetched first if it is not here.
        device: where it is meant to run: cpu, cuda, cuda:1; the default is cuda where there is one.
        dtype: as what it is meant to run; the default is bfloat16 on CUDA and float32 on CPU.
        revision: a hub branch, tag or commit.
        hash: also read every weight file and compare its sha256 with the released one.
        known_answer: encode the model card's example and compare with the published scores. By default this
            is done where the weights are recognised as the released ones and fit in memory.
        json: print one JSON object in place of tables.
    """
    (target,) = parse_devices(device)
    chosen: Dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    folder = model_folder(model, revision=revision)
    with _progress(shards_bytes(folder) * (2 if hash else 1), not json) as advance:
        report = check_folder(folder, device=target, dtype=chosen, hash_files=hash, advance=advance)
    report.findings.append(_ask(report, target, chosen, known_answer))
    if json:
        print(dumps(report.to_json(), indent=2))
    else:
        _print(report)
    if not report.ok:
        raise SystemExit(1)


def _ask(report: Report, device: torch.device, dtype: Dtype, wanted: bool | None) -> Finding:
    """Run the model card's example, if it is wanted and can be."""
    name = "known answer"
    demanded: Literal["fail", "skip"] = "fail" if wanted else "skip"
    if wanted is False or (wanted is None and not report.recognised):
        why = "not asked for" if wanted is False else "these are not the released weights (--known-answer)"
        return Finding(name, "skip", why)
    if not report.ok:
        return Finding(name, demanded, "not asked: mend what failed first")
    row = next(row for row in report.memory if row.dtype == dtype and row.folded)
    if row.fits is False:
        return Finding(name, demanded, f"not asked: the model does not fit in memory as {dtype}")
    encoder = Encoder.from_pretrained(report.folder, device=str(device), dtype=dtype)
    report.answer = answer = ask(lambda texts, prompt: encoder.encode(list(texts), prompt=prompt), dtype)
    said = (
        f"the model card's scores differ by {answer.largest_difference:.2g} at most; "
        f"{answer.tolerance:g} is allowed in {dtype}"
    )
    return Finding(name, "pass" if answer.right else "fail", said)


def _print(report: Report) -> None:
    console = Console()
    table = Table(title=str(report.folder), title_justify="left", show_lines=False)
    for column in ("check", "", "finding"):
        table.add_column(column, overflow="fold")
    for finding in report.findings:
        table.add_row(finding.check, f"[{COLOURS[finding.status]}]{finding.status}", escape(finding.detail))
    console.print(table)
    if report.memory:
        console.print(_memory_table(report))
    if report.answer is not None:
        console.print(_answer_table(report))


def _memory_table(report: Report) -> Table:
    free = report.memory[0].free_bytes
    known = "unknown" if free is None else bytes_text(free)
    table = Table(title=f"memory on {report.device}, free: {known}", title_justify="left")
    for column in ("dtype", "pooler", "weights", "needed", "fits"):
        table.add_column(column, justify="right" if column in ("weights", "needed") else "left")
    for row in report.memory:
        table.add_row(
            row.dtype,
            "folded" if row.folded else "plain",
            bytes_text(row.weights_bytes),
            bytes_text(row.needed_bytes),
            {True: "[green]yes", False: "[red]no", None: "?"}[row.fits],
        )
    return table


def _answer_table(report: Report) -> Table:
    assert report.answer is not None
    table = Table(title="the model card's scores, 100 x cosine", title_justify="left")
    for column in ("query", "passage", "published", "here", "difference"):
        table.add_column(column, justify="right")
    for query, (expected, got) in enumerate(zip(report.answer.expected, report.answer.scores, strict=True)):
        for passage, (a, b) in enumerate(zip(expected, got, strict=True)):
            table.add_row(str(query + 1), str(passage + 1), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}")
    return table


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Advance]:
    if not show or total == 0:
        yield lambda _: None
        return
    columns = (TextColumn("reading weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=total)
        yield lambda count: bar.advance(row, count)
