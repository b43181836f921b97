"""What a run tells: a JSONL log always, TensorBoard where it is wanted, a line for the eye."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from nvembed.errors import OutputError, needs_extra
from nvembed.files import atomic_path


@dataclass(frozen=True)
class Step:
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


class Log:
    """A run's records: ``log.jsonl``, and TensorBoard's events beside it if asked for.

    Opened at step ``after``, it first drops what an earlier, killed run logged beyond it.
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

    def step(self, record: Step) -> None:
        self._write({"kind": "step", **asdict(record)})

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Record what the development set said after ``step``."""
        self._write({"kind": "scores", "step": step, **scores})

    def _write(self, record: dict[str, object]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"could not write {self.path}: {reason}; the last saved state is untouched: make room, and "
                "give the same command again"
            ) from error
        if self._board is not None:
            for name, value in record.items():
                if name not in ("kind", "step") and isinstance(value, int | float):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # every record was flushed; one that could not be has been told of
            self._file.close()
        if self._board is not None:
            self._board.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop records of later steps, and a last line that a kill cut in two."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
