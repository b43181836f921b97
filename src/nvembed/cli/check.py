"""``nvembed check``: whether a folder is complete and undamaged, and whether a model computes as released."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from nvembed.cli.models import load
from nvembed.cli.options import Compute, Dtype, Flag
from nvembed.cli.screen import printable, progress, results, table
from nvembed.files import FolderReport
from nvembed.indexing.models import find_model

if TYPE_CHECKING:
    import torch

    from nvembed.weights.check import Finding, Report

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
FITS = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("?")}


def check(
    target: str,
    /,
    *,
    revision: str | None = None,
    hash: Flag = False,
    known_answer: bool | None = None,
    json: Flag = False,
    compute: Compute = Compute(),
) -> int:
    """Check that a model, or a folder that nvembed wrote, is complete and undamaged.

    Of a model it checks files, checksums, tensors, values, tokenizer, memory, licence and known answer. In
    other folders it compares every file with its stored digest: embedded corpora, indexes, training runs and
    states, training data of "nvembed mine", classifiers, evaluation results, and stored vectors. Nothing is
    changed.

    The exit code is 1 if anything is damaged. The output names the file and the command that repairs it.

    Examples:

        nvembed check nvidia/NV-Embed-v2 --device cuda --hash

        nvembed check ./my-model --dtype bfloat16 --json

        nvembed check notes.embedded

        nvembed check runs/stage1

    Parameters
    ----------
    target
        A folder, or the hub id of a model, which is downloaded if necessary.
    revision
        Branch, tag or commit of a model of the hub.
    hash
        Model: also compare the SHA-256 of every weight file with that of the release.
    known_answer
        Model: encode the model card's example and compare with the published scores. Default: only if the
        weights are recognised as the released ones and fit in memory.
    json
        Print one JSON object instead of tables.
    """
    folder = Path(target).expanduser()
    if folder.is_dir() and (reports := list(_reports(folder))):
        damaged = any(report.damages for report in reports)
        if json:
            content = {"folder": folder, "ok": not damaged, "parts": [asdict(report) for report in reports]}
            print(dumps(content, indent=2, default=str))
        else:
            _print_reports(reports)
        return int(damaged)
    return _check_model(target, revision, hash, known_answer, compute, as_json=json)


def _reports(folder: Path) -> Iterator[FolderReport]:
    """Yield a report on each part of a folder; nothing if nvembed did not write it, or for a model."""
    from nvembed.data.check import check_mined, is_mined
    from nvembed.embed.check import check_embedded
    from nvembed.embed.folder import INDEX, is_embedded
    from nvembed.evaluate.record import check_results, is_results
    from nvembed.learn.classify import check_classifier
    from nvembed.search.check import check_index
    from nvembed.search.record import RECORD
    from nvembed.train.check import check_run, is_run
    from nvembed.vectors.store import check_store, is_store
    from nvembed.weights.sums import SUMS, check_sums

    def has(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    embedded = is_embedded(folder)
    job = has("manifest.json", "plan.json", "job.json") and (folder / "shards").is_dir()
    index = folder / INDEX if embedded or job else folder
    if embedded or job:
        yield check_embedded(folder)
    if (index / RECORD).is_file() or any(index.glob("nvembed_*.lance")):
        yield check_index(index, server=os.environ.get("NVEMBED_INDEX_SERVER", ""))
    if has("classifier.json", "classifier.npz"):
        yield check_classifier(folder)
    if is_mined(folder):
        yield check_mined(folder)
    if is_run(folder):
        yield check_run(folder)
    if has(SUMS) and not (folder / "config.json").exists():
        yield check_sums(folder)
    if is_results(folder):
        yield check_results(folder)
    for store in (folder, folder / ".embeddings", *folder.glob("*.work/vectors")):
        if store.is_dir() and is_store(store):
            yield check_store(store)
    if not embedded:
        for path in (*folder.glob("*/files.jsonl"), *folder.glob(".nvembed/*/files.jsonl")):
            if is_embedded(path.parent):  # kept beside a folder or file
                yield from _reports(path.parent)


def _print_reports(reports: list[FolderReport]) -> None:
    console = results()
    for report in reports:
        state = Text("damaged", "red") if report.damages else Text("whole", "green")
        line = Text.assemble(printable(f"{report.path}: {report.kind}, "), state, f" ({report.content})")
        console.print(line, soft_wrap=True)
        for damage in report.damages:
            console.print(Text(printable(f"  {damage.path}: {damage.fault}")), soft_wrap=True)
            console.print(Text(printable(f"    cure: {damage.cure}"), "dim"), soft_wrap=True)


def _check_model(
    target: str,
    revision: str | None,
    hash_files: bool,
    known_answer: bool | None,
    compute: Compute,
    *,
    as_json: bool,
) -> int:
    from nvembed.model.device import parse_devices
    from nvembed.model.float8 import check_float8
    from nvembed.weights.check import check_folder

    device = parse_devices(compute.device)[0]
    dtype: Dtype = compute.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if dtype == "fp8":
        check_float8(device)
    folder = find_model(target, revision=revision)
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
            folder, device=device, dtype=dtype, hash_files=hash_files, advance=advance, expect=expect
        )
    report.findings.append(_ask(report, device, dtype, known_answer))
    if as_json:
        print(dumps(report.to_json(), indent=2))
    else:
        _print(report)
    return 0 if report.ok else 1


def _ask(report: "Report", device: "torch.device", dtype: Dtype, requested: bool | None) -> "Finding":
    """Compute the model card's example, if it is requested or the weights are the released ones."""
    from nvembed.weights.check import Finding
    from nvembed.weights.known import ask

    name = "known answer"
    failure: Literal["fail", "skip"] = "fail" if requested else "skip"
    if requested is False or (requested is None and not report.recognised):
        reason = "not requested" if requested is False else "not the released weights (--known-answer)"
        return Finding(name, "skip", reason)
    if not report.ok:
        return Finding(name, failure, "not computed, because another check failed")
    if dtype == "int8" or dtype == "int4" or dtype == "fp8":
        return Finding(name, failure, f"no published tolerance for {dtype}: use another --dtype")
    row = next(row for row in report.memory if row.dtype == dtype and row.folded)
    if row.fits is False:
        return Finding(name, failure, f"not computed: the model does not fit in memory in {dtype}")
    encoder = load(str(report.folder), device=str(device), dtype=dtype)
    report.answer = answer = ask(lambda texts, prompt: encoder.encode(list(texts), prompt=prompt), dtype)
    detail = (
        f"largest difference from the model card's scores: {answer.largest_difference:.2g}; allowed in "
        f"{dtype}: {answer.tolerance:g}"
    )
    return Finding(name, "pass" if answer.right else "fail", detail)


def _print(report: "Report") -> None:
    console = results()
    findings = table("check", "", "finding", title=str(report.folder))
    for finding in report.findings:
        findings.add_row(finding.check, Text(finding.status, COLOURS[finding.status]), finding.detail)
    console.print(findings)
    if report.memory:
        console.print(_memory_table(report))
    if report.answer is not None:
        console.print(_answer_table(report))


def _memory_table(report: "Report") -> Table:
    from nvembed.weights.check import bytes_text

    free = report.memory[0].free_bytes
    known = "unknown" if free is None else bytes_text(free)
    title = f"memory on {report.device}, free: {known}"
    sizes = table("dtype", "pooler", "weights", "needed", "fits", title=title)
    for row in report.memory:
        cells = bytes_text(row.weights_bytes), bytes_text(row.needed_bytes)
        sizes.add_row(row.dtype, "folded" if row.folded else "plain", *cells, FITS[row.fits])
    return sizes


def _answer_table(report: "Report") -> Table:
    assert report.answer is not None
    title = "the model card's scores, 100 x cosine"
    scores = table("query", "passage", "published", "here", "difference", title=title)
    for query, (expected, got) in enumerate(zip(report.answer.expected, report.answer.scores, strict=True)):
        for passage, (a, b) in enumerate(zip(expected, got, strict=True)):
            scores.add_row(str(query + 1), str(passage + 1), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}")
    return scores
