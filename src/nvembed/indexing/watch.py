"""A folder that is watched: when it has changed, and its files have stopped changing."""

import time
from collections.abc import Callable
from pathlib import Path

from nvembed.read.corpus import list_files

LOOK_S = 2.0  # between two looks at a folder
LOOK_SHARE = 0.1  # of the time goes into looks at most
PATIENCE = 15  # looks after which files that never stop changing are taken as they are

# size and time of each file: cheap to compare
Signature = dict[str, tuple[int, int]]


def signature(corpus: Path, *, follow_links: bool) -> Signature:
    """Return size and time of each file.

    Raises:
        DataError: the folder is missing, or has no file that can be read.
    """
    sizes: Signature = {}
    for file in list_files(str(corpus), follow_links=follow_links).files:
        try:
            state = file.path.stat()
        except OSError:  # it was removed meanwhile, or cannot be read
            sizes[file.name] = (-1, 0)
        else:
            sizes[file.name] = (state.st_size, state.st_mtime_ns)
    return sizes


class FolderWatch:
    """Looks at a folder every ``LOOK_S`` seconds; files that are still being written are waited for.

    Args:
        look: returns the signature of the folder.
    """

    def __init__(self, look: Callable[[], Signature], sleep: Callable[[float], None] = time.sleep) -> None:
        self._look, self._sleep = look, sleep
        self._handled: Signature | None = None

    def wait(self) -> Signature:
        """Return the signature of the folder once it differs from the one that was handled.

        Two looks must agree, so that a file that is being copied is not read half; after ``PATIENCE`` looks
        the folder is taken as it is.
        """
        last: Signature | None = None
        changing = 0
        while True:
            start = time.perf_counter()
            now = self._look()
            if now == self._handled:
                changing = 0
            elif now == last or changing >= PATIENCE:
                return now
            else:
                changing += 1
            last = now
            self.pause(time.perf_counter() - start)

    def pause(self, look_s: float = 0.0) -> None:
        """Sleep until the next look; the longer a look takes, the longer."""
        self._sleep(max(LOOK_S, look_s / LOOK_SHARE))

    def handled(self, state: Signature) -> None:
        """Take note that the index is up to date with this state of the folder."""
        self._handled = state
