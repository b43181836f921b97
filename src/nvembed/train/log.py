"""The log of a run: ``log.jsonl``, TensorBoard's events if requested, and a line for the terminal."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from nvembed.errors import DataError, OutputError, needs_extra
from nvembed.files import atomic_path


@dataclass(frozen=True)
class StepRecord:
    """One finished step, counted from 1."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int  # of all ranks, without repetitions
    tokens_per_s: float
    seconds: float
    remaining_s: float

    def line(self, steps: int) -> str:
        hours, rest = divmod(int(self.remaining_s), 3600)
        left = f"{hours}:{rest // 60:02}:{rest % 60:02}"
        return (
            f"step {self.step:,}/{steps:,}  loss {self.loss:.4f}  grad {self.grad_norm:.3f}  "
            f"lr {self.learning_rate:.2e}  {self.tokens_per_s:,.0f} tokens/s  left {left}"
        )


class TrainingLog:
    """``log.jsonl``, and TensorBoard's events beside it if requested.

    Opening it at step ``after`` drops what an earlier, killed run logged beyond that step.

    Raises:
        DataError: a line of ``log.jsonl`` that is not a record, other than a last one cut in two; or the
            first rank's log lacks steps (other ranks may have joined later).
    """

    def __init__(self, folder: Path, *, after: int, tensorboard: bool = False) -> None:
        self.path = folder / "log.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        _keep_until(self.path, after)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            with needs_extra("train", "--tensorboard"):
                from torch.utils.tensorboard import SummaryWriter
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def step(self, record: StepRecord) -> None:
        self._write({"kind": "step", **asdict(record)})

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Record the scores on the development set after ``step``."""
        self._write({"kind": "scores", "step": step, **scores})

    def _write(self, record: dict[str, object]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"could not write {self.path}: {reason}; the last saved state is untouched: make room, and "
                "run the same command again"
            ) from error
        if self._board is not None:
            for name, value in record.items():
                if name not in ("kind", "step") and isinstance(value, int | float):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # every record is flushed when it is written
            self._file.close()
        if self._board is not None:
            self._board.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop records of later steps, and a last line that a kill cut in two."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    kept, steps = [], {0}
    for number, line in enumerate(lines, start=1):
        if (logged := _step_of(line)) is not None:
            if logged <= step:
                kept.append(line + b"\n")
                steps.add(logged)
        elif line.strip() and number < len(lines):  # a whole line has a line end behind it
            raise DataError(f"{path}:{number}: expected a log record, got {line[:60]!r}: remove the line")
    missing = set(range(min(steps - {0}, default=1), step + 1)) - steps
    if missing and not path.parent.name.startswith(".rank-"):
        cure = f"it is damaged. Remove it to go on; the log then begins at step {step + 1}"
        raise DataError(f"{path}: {len(missing)} steps are missing, the first is {min(missing)}: {cure}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) else None
