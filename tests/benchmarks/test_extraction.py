"""The files of the table of extraction quality are read without a failure."""

from pathlib import Path

import pytest

import extraction


@pytest.mark.parametrize("group", ["charset labels", "documents"])
def test_known_documents(tmp_path: Path, group: str) -> None:
    labels = group == "charset labels"
    cases = [case for case in extraction.all_cases() if (case.group == "charset labels") == labels]
    assert len(cases) > 40
    failures = []
    for case in cases:
        (tmp_path / case.name).write_bytes(case.raw)
        failures += [
            f"{case.name}: {fault}" for fault in case.failures(extraction.ours(tmp_path / case.name))
        ]
    assert not failures
