"""``nvembed check``: is this model whole, does it fit here, what may it be used for, is its answer right?"""

from json import dumps
from typing import Literal

import torch
from rich.table import Table
from rich.text import Text

from nvembed.cli.models import find_model, load
from nvembed.cli.options import Dtype
from nvembed.cli.screen import progress, results
from nvembed.model.device import parse_devices
from nvembed.weights.check import Finding, Report, bytes_text, check_folder
from nvembed.weights.known import ask

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
FITS = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("?")}


def check(
    model: str,
    /,
    *,
    device: str | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
    hash: bool = False,
    known_answer: bool | None = None,
    json: bool = False,
) -> int:
    """Check a model: files, tensors, values, tokenizer, memory, licence and known answer.

    The exit code is 1 if anything failed. Warnings are no failures.

    Examples:

        nvembed check nvidia/NV-Embed-v2 --device cuda --hash

        nvembed check ./my-model --dtype bfloat16 --json

    Parameters
    ----------
    model
        A checkpoint folder, or a hub id, which is fetched first if it is not here.
    device
        Where it is meant to run: cpu, cuda, cuda:1; cuda unless given, where there is one.
    dtype
        As what it is meant to run; bfloat16 on CUDA and float32 on CPU unless given.
    revision
        A hub branch, tag or commit.
    hash
        Also read every weight file and compare its sha256 with the released one.
    known_answer
        Encode the model card's example and compare with the published scores. Unless given, this is done
        where the weights are recognised as the released ones and fit in memory.
    json
        Print one JSON object in place of tables.
    """
    target = parse_devices(device)[0]
    chosen: Dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    folder = find_model(model, revision=revision)
    total = done = 0
    with progress("reading weights (MB)") as update:

        def expect(count: int) -> None:
            nonlocal total
            total = count

        def advance(count: int) -> None:
            nonlocal done
            done += count
            update(done // 1_000_000, total // 1_000_000)

        report = check_folder(
            folder, device=target, dtype=chosen, hash_files=hash, advance=advance, expect=expect
        )
    report.findings.append(_ask(report, target, chosen, known_answer))
    if json:
        print(dumps(report.to_json(), indent=2))
    else:
        _print(report)
    return 0 if report.ok else 1


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
    encoder = load(str(report.folder), device=str(device), dtype=dtype)
    report.answer = answer = ask(lambda texts, prompt: encoder.encode(list(texts), prompt=prompt), dtype)
    said = (
        f"the model card's scores differ by {answer.largest_difference:.2g} at most; "
        f"{answer.tolerance:g} is allowed in {dtype}"
    )
    return Finding(name, "pass" if answer.right else "fail", said)


def _print(report: Report) -> None:
    console = results()
    table = _table(str(report.folder), "check", "", "finding")
    for found in report.findings:
        table.add_row(found.check, Text(found.status, COLOURS[found.status]), found.detail)
    console.print(table)
    if report.memory:
        console.print(_memory_table(report))
    if report.answer is not None:
        console.print(_answer_table(report))


def _memory_table(report: Report) -> Table:
    free = report.memory[0].free_bytes
    known = "unknown" if free is None else bytes_text(free)
    table = _table(
        f"memory on {report.device}, free: {known}", "dtype", "pooler", "weights", "needed", "fits"
    )
    for row in report.memory:
        sizes = bytes_text(row.weights_bytes), bytes_text(row.needed_bytes)
        table.add_row(row.dtype, "folded" if row.folded else "plain", *sizes, FITS[row.fits])
    return table


def _answer_table(report: Report) -> Table:
    assert report.answer is not None
    title = "the model card's scores, 100 x cosine"
    table = _table(title, "query", "passage", "published", "here", "difference")
    for query, (expected, got) in enumerate(zip(report.answer.expected, report.answer.scores, strict=True)):
        for passage, (a, b) in enumerate(zip(expected, got, strict=True)):
            table.add_row(str(query + 1), str(passage + 1), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
