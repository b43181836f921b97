"""First eight numbers and norm of a dozen hard sentences, as they were when this file was written.

A change that should not alter numbers leaves this file alone (house rule: proof of value). To write it anew
after one that should: ``python tests/golden/test_golden.py``.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from nvembed.encoder import Encoder

HERE = Path(__file__).parent
MODEL = HERE.parent / "parity" / "tiny-a"
GOLDEN = HERE / "tiny-a.json"
PROMPT = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "
SENTENCES = [
    "are judo throws allowed in wrestling?",
    "42 is a number at the start",
    "指示 starts the text",
    "Emoji 😀👩‍👩‍👧‍👦 and RTL עברית",
    " leading and trailing space ",
    "</s> inside </s> the text",
    "line one\nline two\n\n\tfour",
    "\x00 control \x07 bell",
    "é combining vs é composed",
    "x" * 500,
    "MiXeD CaSe, punctuation!!! ...",
    "",
]


def compute() -> dict[str, list[list[float]]]:
    model = Encoder.from_pretrained(MODEL, device="cpu", dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors = {side: model.encode(SENTENCES, prompt=prompt) for side, prompt in SIDES.items()}
    return {
        side: [[*map(float, row[:8]), float(np.linalg.norm(row))] for row in rows]
        for side, rows in vectors.items()
    }


SIDES = {"query": PROMPT, "document": ""}


@pytest.mark.parametrize("side", SIDES)
def test_numbers_are_what_they_were(side: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(compute()[side], golden[side], atol=2e-6)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(compute(), indent=1) + "\n")
