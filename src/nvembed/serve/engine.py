"""One request's way: texts, prompt, tokens, a place in the queue, vectors. Knows no HTTP and no API."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Literal, TypeVar

import numpy as np

from nvembed.errors import InputError
from nvembed.serve.batcher import Batcher
from nvembed.serve.jobs import expired, failing
from nvembed.serve.model import Model
from nvembed.serve.refusal import RefusedError
from nvembed.serve.settings import Settings
from nvembed.serve.watch import Watch
from nvembed.text.prompt import format_prompt, instruction_for
from nvembed.text.tokenize import Piece, Tokens

InputType = Literal["query", "passage", "classification", "clustering"]
Truncate = Literal["NONE", "START", "END"]

SMALL_BYTES = 16_384  # requests up to this size are tokenised on a thread that larger ones cannot hold
BYTES_PER_TOKEN = 4  # to reserve a place before a text is tokenised
NO_IDS = (
    "this server accepts texts, not token ids: their vocabulary is unknown. Send texts (in LangChain's "
    "OpenAIEmbeddings: check_embedding_ctx_length=False), or start the server with --vocabulary cl100k_base "
    "for OpenAI's ids, or --vocabulary model for ids of the model's own tokenizer"
)
WARM_UP = ("warm-up", "The quick brown fox jumps over the lazy dog. " * 16)


@dataclass(frozen=True)
class Asked:
    """What a request wants, whatever API it came by. ``param`` is that API's name of the texts."""

    texts: Sequence[str | Sequence[int]]
    input_type: InputType | None = None
    instruction: str | None = None
    task: str | None = None
    truncate: Truncate = "NONE"
    param: str = "input"
    max_length: int | None = None
    prompt: str | None = None  # the whole of it, in place of the others


@dataclass(frozen=True)
class Answer:
    """Vectors (n, d) float32, unit rows, and what was read of each text."""

    vectors: np.ndarray
    tokens: list[int]  # read, prompt, BOS and EOS included
    full_tokens: list[int]  # before any cut
    prompt: str
    queue_s: float  # from tokens to the first batch
    fingerprint: str  # names what the model computes

    @property
    def truncated(self) -> list[int]:
        """Rows of the texts that were cut."""
        pairs = zip(self.tokens, self.full_tokens, strict=True)
        return [row for row, (read, full) in enumerate(pairs) if full > read]


T = TypeVar("T")
Gone = Callable[[], Coroutine[None, None, None]]  # returns when nobody waits any more; cancelled at the end


class Engine:
    """Owns the compute threads and the tokenising ones."""

    def __init__(self, model: Model, settings: Settings, watch: Watch) -> None:
        """Warm the devices up and start.

        Raises:
            InputError: ``max_length`` is no length that this model reads.
            Whatever the model raises for a plain text.
        """
        self.model = model
        self.settings = settings
        self.watch = watch
        self.max_length = settings.max_length or model.max_length
        probe = model.tokenise(WARM_UP, prompt="", max_length=self.max_length, cut="end")
        for device in model.devices:
            if not np.isfinite(device.embed(probe, pause=None)).all():
                raise InputError(f"the warm-up's vectors are not finite on {device.name}: run  nvembed check")
        batch = min(device.batch_tokens for device in model.devices)
        self.batcher = Batcher(
            model.devices,
            probe,
            watch,
            max_queue_tokens=settings.max_queue_tokens or 64 * batch,
            pause_s=settings.pause_ms / 1000,
        )
        self._small = ThreadPoolExecutor(1, "tokenise-small")
        self._large = ThreadPoolExecutor(settings.tokenise_threads, "tokenise")

    def close(self) -> None:
        self.batcher.close()
        self._small.shutdown(wait=False, cancel_futures=True)
        self._large.shutdown(wait=False, cancel_futures=True)

    def prompt(self, asked: Asked) -> str:
        """Return the string put before the texts.

        A task gives both sides of a pair theirs; an instruction is for queries. Without either it is the
        operator's instruction for the input type, if there is one.

        Raises:
            RefusedError: 400, both are given, the task is unknown, or the instruction is none.
        """
        if asked.prompt is not None:
            return asked.prompt
        if asked.instruction is not None and asked.task is not None:
            raise RefusedError(
                400, "bad_instruction", "instruction and task are both given: send one", param="task"
            )
        passage = asked.input_type == "passage"
        try:
            if asked.task is not None:
                return format_prompt(instruction_for(asked.task, "corpus" if passage else "query"))
            if asked.instruction and passage:
                raise InputError("instruction goes with queries, not with passages: leave one of them out")
            if asked.instruction is not None:
                return format_prompt(asked.instruction)
        except InputError as error:
            param = "task" if asked.task is not None else "instruction"
            raise RefusedError(400, "bad_instruction", str(error), param=param) from error
        settings = self.settings
        defaults = {
            "query": settings.query_instruction,
            "classification": settings.classification_instruction,
            "clustering": settings.clustering_instruction,
        }
        return format_prompt(defaults.get(asked.input_type or "", ""))

    async def embed(self, asked: Asked, deadline: float, gone: Gone) -> Answer:
        """Embed a request's texts; ``deadline`` is on the monotonic clock.

        Raises:
            RefusedError: why there are no vectors.
        """
        if self.batcher.failing:
            raise failing()
        prompt = self.prompt(asked)
        size = self._checked_size(asked)
        left = asyncio.ensure_future(gone())
        try:
            tokens = await self._tokenised(asked, prompt, size, left, deadline)
            job = self.batcher.submit(tokens, urgent=self._urgent(asked, tokens), deadline=deadline)
            try:
                vectors = await self._first(asyncio.wrap_future(job.future), left, deadline)
            except RefusedError as refusal:
                self.batcher.cancel(job, refusal)
                raise
        finally:
            left.cancel()
        queue_s = (job.started or job.submitted) - job.submitted
        self.watch.queue_s.observe(queue_s)
        read, full = [len(t.input_ids) for t in tokens], [t.full_length for t in tokens]
        answer = Answer(vectors, read, full, prompt, queue_s, self.model.fingerprint)
        self.watch.texts.inc(len(tokens))
        self.watch.cut.inc(len(answer.truncated))
        return answer

    async def _tokenised(
        self, asked: Asked, prompt: str, size: int, gone: "asyncio.Future[None]", deadline: float
    ) -> list[Tokens]:
        """Tokenise on a thread, with room in the queue reserved meanwhile."""
        reserved = size // BYTES_PER_TOKEN + len(asked.texts)
        self.batcher.reserve(reserved)
        try:
            return await self._on_thread(partial(self._tokens, asked, prompt), size, gone, deadline)
        finally:
            self.batcher.release(reserved)

    async def _on_thread(
        self, work: Callable[[], T], size: int, gone: "asyncio.Future[None]", deadline: float
    ) -> T:
        pool = self._small if size <= SMALL_BYTES else self._large
        return await self._first(asyncio.get_running_loop().run_in_executor(pool, work), gone, deadline)

    @staticmethod
    async def _first(work: "asyncio.Future[T]", gone: "asyncio.Future[None]", deadline: float) -> T:
        await asyncio.wait(
            (work, gone), timeout=max(deadline - monotonic(), 0), return_when=asyncio.FIRST_COMPLETED
        )
        if work.done():
            return work.result()
        work.cancel()
        if gone.done():
            raise RefusedError(499, "gone", "the client closed the connection")
        raise expired()

    def _checked_size(self, asked: Asked) -> int:
        """Return the request's bytes of text (of ids: four each).

        Raises:
            RefusedError: no text, too many, one that is empty or too large.
        """
        param, count = asked.param, len(asked.texts)
        if count == 0:
            raise RefusedError(
                400, "empty_input", f"{param} is empty: expected at least one text", param=param
            )
        if count > self.settings.max_items:
            message = (
                f"{param} has {count:,} texts and max_items is {self.settings.max_items:,}: send it in parts"
            )
            raise RefusedError(413, "too_many_items", message, param=param)
        total = 0
        for row, text in enumerate(asked.texts):
            if len(text) == 0:
                message = f"{param}[{row}] is empty, so its vector would say nothing: leave it out"
                raise RefusedError(400, "empty_input", message, param=param)
            size = len(text.encode(errors="replace")) if isinstance(text, str) else 4 * len(text)
            if size > self.settings.max_text_bytes:
                limit = self.settings.max_text_bytes
                message = f"{param}[{row}] is {size:,} bytes and max_text_bytes is {limit:,}: cut it"
                raise RefusedError(413, "text_too_large", message, param=param)
            total += size
        return total

    def _tokens(self, asked: Asked, prompt: str) -> list[Tokens]:
        try:
            texts = [
                text if isinstance(text, str) else self._text_of(text, row)
                for row, text in enumerate(asked.texts)
            ]
            cut: Literal["start", "end"] = "start" if asked.truncate == "START" else "end"
            limit = min(asked.max_length or self.max_length, self.max_length)
            tokens = self.model.tokenise(texts, prompt=prompt, max_length=limit, cut=cut)
        except InputError as error:
            raise RefusedError(400, "bad_input", str(error), param=asked.param) from error
        for row, item in enumerate(tokens):
            if item.truncated and asked.truncate == "NONE":
                raise RefusedError(
                    400,
                    "text_too_long",
                    f"{asked.param}[{row}] is {item.full_length:,} tokens and at most {limit:,} are "
                    f"read: shorten it, or have it cut, with truncate",
                    param=asked.param,
                )
        return tokens

    def _text_of(self, ids: Sequence[int], row: int) -> str:
        if self.model.text_of is None:  # ids do not show which tokenizer made them
            raise InputError(NO_IDS)
        try:
            return self.model.text_of(ids)
        except InputError as error:
            raise InputError(f"input {row}: {error}") from error

    async def pieces(self, asked: Asked, deadline: float, gone: Gone) -> list[list[Piece]]:
        """Return every text's tokens, uncut; raises RefusedError as ``embed`` does."""
        prompt = self.prompt(asked)
        size = self._checked_size(asked)

        def all_pieces() -> list[list[Piece]]:
            try:
                return [self.model.pieces(str(text), prompt) for text in asked.texts]
            except InputError as error:
                raise RefusedError(400, "bad_input", str(error), param=asked.param) from error

        left = asyncio.ensure_future(gone())
        try:
            return await self._on_thread(all_pieces, size, left, deadline)
        finally:
            left.cancel()

    def _urgent(self, asked: Asked, tokens: Sequence[Tokens]) -> bool:
        """A query, said or by its looks: one short text that is not called a passage."""
        if sum(len(item.input_ids) for item in tokens) > self.settings.query_tokens:
            return False
        if asked.input_type is None:
            return asked.instruction is not None or asked.task is not None or len(tokens) == 1
        return asked.input_type == "query"
