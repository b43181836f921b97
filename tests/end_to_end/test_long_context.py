"""32,768 tokens of one text, with memory that grows linearly in the length."""

import subprocess
import sys

from conftest import TINY_A

PEAK = """
import sys
from pathlib import Path
from nvembed import Encoder

def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

model = Encoder.from_pretrained(sys.argv[1], device="cpu", dtype="float32")
text = "vector " * (int(sys.argv[2]) - 3)
assert len(model.tokenizer([text])[0].input_ids) == int(sys.argv[2])
model.encode(["warm up"])
before = peak_kib()
vector = model.encode([text])
print(peak_kib() - before, float((vector ** 2).sum()))
"""


def grown(tokens: int) -> float:
    command = [sys.executable, "-c", PEAK, str(TINY_A), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kib, norm = done.stdout.split()
    assert abs(float(norm) - 1) < 1e-5
    return float(kib)


def test_memory_is_linear_in_the_length() -> None:
    """Four times the tokens take at most four times the memory; a square matrix would take sixteen."""
    assert grown(32_768) < 4.5 * grown(8_192)
