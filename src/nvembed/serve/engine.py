"""The path of one request: texts, prompt, tokens, queue, vectors; independent of HTTP and of any API."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Literal, TypeVar

import numpy as np

from nvembed.errors import InputError
from nvembed.serve.batcher import Batcher, EmbedJob, expired, failing
from nvembed.serve.model import ServedModel
from nvembed.serve.refusal import RefusedError
from nvembed.serve.settings import ServerSettings
from nvembed.serve.watch import Watch
from nvembed.text.model_prompts import ModelPrompts
from nvembed.text.prompt import format_prompt, instruction_for
from nvembed.text.tokenize import Piece, Tokens

InputType = Literal["query", "passage", "classification", "clustering"]
Truncate = Literal["NONE", "START", "END"]

SMALL_BYTES = 16_384  # requests up to this size are tokenised on a thread that larger ones cannot hold
BYTES_PER_TOKEN = 4  # an estimate, to reserve a place before a text is tokenised
PIECES_AT_ONCE = 2  # of one request in the queue: one at work, one waiting
TOKENIZE_BYTES, TOKENIZE_TOKENS = 2**20, 2**16  # of one /tokenize request: a token is 100 bytes of JSON
NO_IDS = (
    "this server accepts texts, not token ids: their vocabulary is unknown. Send texts (in LangChain's "
    "OpenAIEmbeddings: check_embedding_ctx_length=False), or start the server with --vocabulary cl100k_base "
    "for OpenAI's ids, or --vocabulary model for ids of the model's own tokenizer"
)
NO_INSTRUCTION = "instruction goes with queries, not with passages: leave one of them out"
WARM_UP = ("warm-up", "The quick brown fox jumps over the lazy dog. " * 16)


@dataclass(frozen=True)
class EmbedRequest:
    """A request, independent of the API; ``param`` is that API's name of the texts, for messages."""

    texts: Sequence[str | Sequence[int]]
    input_type: InputType | None = None
    instruction: str | None = None
    task: str | None = None
    truncate: Truncate = "NONE"
    param: str = "input"
    max_length: int | None = None
    prompt: str | None = None  # the whole prompt, in place of instruction, task and input_type


@dataclass(frozen=True)
class EmbedResult:
    """Vectors (n, d) float32, unit rows, and how many tokens of each text were read."""

    vectors: np.ndarray
    tokens: list[int]  # read, prompt, BOS and EOS included
    full_tokens: list[int]  # before any cut
    prompt: str
    queue_s: float  # from tokens to the first batch
    fingerprint: str  # of the model

    @property
    def truncated(self) -> list[int]:
        """Rows of the texts that were cut."""
        pairs = zip(self.tokens, self.full_tokens, strict=True)
        return [row for row, (read, full) in enumerate(pairs) if full > read]


T = TypeVar("T")
Gone = Callable[[], Coroutine[None, None, None]]  # returns when the client has gone; cancelled at the end


class Engine:
    """Owns the compute threads and the tokenising threads."""

    def __init__(self, model: ServedModel, settings: ServerSettings, watch: Watch) -> None:
        """Warm the devices up and start.

        Raises:
            InputError: ``max_length`` is longer than the model reads.
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
        max_queue_tokens = settings.max_queue_tokens or 64 * batch
        self.piece_bytes = BYTES_PER_TOKEN * max(max_queue_tokens // 16, batch * len(model.devices))
        pause_s = settings.pause_ms / 1000
        self.batcher = Batcher(
            model.devices, probe, watch, max_queue_tokens=max_queue_tokens, pause_s=pause_s
        )
        self._small = ThreadPoolExecutor(1, "tokenise-small")
        self._large = ThreadPoolExecutor(settings.tokenise_threads, "tokenise")

    def close(self) -> None:
        self.batcher.close()
        self._small.shutdown(wait=False, cancel_futures=True)
        self._large.shutdown(wait=False, cancel_futures=True)

    def prompt(self, request: EmbedRequest) -> str:
        """Return the string to prepend to the texts.

        A task has an instruction for each side of a pair; an instruction is for queries. Without either, it
        is the operator's instruction for the input type, if there is one.

        Raises:
            RefusedError: 400, instruction and task were both sent, or one of them cannot be used.
        """
        if request.prompt is not None:
            return request.prompt
        if request.instruction is not None and request.task is not None:
            message = "expected instruction or task, got both: send one"
            raise RefusedError(400, "bad_instruction", message, param="task")
        passage = request.input_type == "passage"
        try:
            if self.model.prompts is not None:
                return self._own_prompt(request, self.model.prompts)
            if request.task is not None:
                return format_prompt(instruction_for(request.task, "corpus" if passage else "query"))
            if request.instruction and passage:
                raise InputError(NO_INSTRUCTION)
            if request.instruction is not None:
                return format_prompt(request.instruction)
        except InputError as error:
            param = "task" if request.task is not None else "instruction"
            raise RefusedError(400, "bad_instruction", str(error), param=param) from error
        settings = self.settings
        defaults = {
            "query": settings.query_instruction,
            "classification": settings.classification_instruction,
            "clustering": settings.clustering_instruction,
        }
        return format_prompt(defaults.get(request.input_type or "", ""))

    def _own_prompt(self, request: EmbedRequest, own: ModelPrompts) -> str:
        """Return the prompt of a model with prompts of its own: by task, instruction or input type."""
        if request.input_type == "passage":
            if request.instruction:
                raise InputError(NO_INSTRUCTION)
            return own.document(task=request.task)
        if request.input_type == "query" or request.task is not None or request.instruction is not None:
            return own.query(instruction=request.instruction, task=request.task)
        return own.texts.get(request.input_type or "", own.plain)

    async def embed(self, request: EmbedRequest, deadline: float, gone: Gone) -> EmbedResult:
        """Embed a request's texts; ``deadline`` is on the monotonic clock.

        A large request is queued in pieces, a few at a time, so that other requests are served between them.

        Raises:
            RefusedError: the texts cannot be embedded.
        """
        if self.batcher.failing:
            raise failing()
        prompt = self.prompt(request)
        sizes = self._sizes(request, prompt)
        disconnect = asyncio.ensure_future(gone())
        jobs: list[EmbedJob] = []
        vectors: list[np.ndarray] = []
        try:
            for first, end in self._pieces(sizes):
                piece = replace(request, texts=request.texts[first:end])
                size = sum(sizes[first:end])
                work = partial(self._tokens, piece, prompt, first)
                tokens = await self._tokenised(work, size, disconnect, deadline, admitted=first > 0)
                if len(jobs) - len(vectors) == PIECES_AT_ONCE:
                    vectors.append(await self._result(jobs[len(vectors)], disconnect, deadline))
                urgent = end - first == len(sizes) and self._urgent(request, tokens)
                jobs.append(self.batcher.submit(tokens, urgent=urgent, deadline=deadline, first_row=first))
            while len(vectors) < len(jobs):
                vectors.append(await self._result(jobs[len(vectors)], disconnect, deadline))
        except BaseException as error:
            other = RefusedError(500, "internal", "another part of the request failed")
            for job in jobs:
                self.batcher.cancel(job, error if isinstance(error, RefusedError) else other)
            raise
        finally:
            disconnect.cancel()
        return self._answer(jobs, vectors, prompt)

    def _answer(self, jobs: Sequence[EmbedJob], vectors: Sequence[np.ndarray], prompt: str) -> EmbedResult:
        queue_s = (jobs[0].started or jobs[0].submitted) - jobs[0].submitted
        self.watch.queue_s.observe(queue_s)
        tokens = [item for job in jobs for item in job.tokens]
        read, full = [len(t.input_ids) for t in tokens], [t.full_length for t in tokens]
        joined = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
        answer = EmbedResult(joined, read, full, prompt, queue_s, self.model.fingerprint)
        self.watch.texts.inc(len(tokens))
        self.watch.cut.inc(len(answer.truncated))
        return answer

    async def _result(self, job: EmbedJob, disconnect: "asyncio.Future[None]", deadline: float) -> np.ndarray:
        return await self._first(asyncio.wrap_future(job.future), disconnect, deadline)

    def _pieces(self, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the first row and the end of each piece: texts of ``piece_bytes``, or one longer text."""
        first = total = 0
        for row, size in enumerate(sizes):
            if row > first and total + size > self.piece_bytes:
                yield first, row
                first, total = row, 0
            total += size
        yield first, len(sizes)

    async def _tokenised(
        self,
        work: Callable[[], T],
        size: int,
        gone: "asyncio.Future[None]",
        deadline: float,
        *,
        admitted: bool = False,
    ) -> T:
        """Run ``work`` on a tokenising thread; meanwhile room in the queue is reserved."""
        reserved = size // BYTES_PER_TOKEN + 1
        self.batcher.reserve(reserved, admitted=admitted)
        try:
            pool = self._small if size <= SMALL_BYTES else self._large
            return await self._first(asyncio.get_running_loop().run_in_executor(pool, work), gone, deadline)
        finally:
            self.batcher.release(reserved)

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

    def _sizes(self, request: EmbedRequest, prompt: str) -> list[int]:
        """Return the bytes of each text with the prompt prepended; a token id counts as four bytes.

        Raises:
            RefusedError: there is no text, there are too many, or one is empty or too large.
        """
        param, count, settings = request.param, len(request.texts), self.settings
        if count == 0:
            message = f"{param} is empty: expected at least one text"
            raise RefusedError(400, "empty_input", message, param=param)
        if count > settings.max_items:
            message = f"{param} has {count:,} texts and max_items is {settings.max_items:,}: send it in parts"
            raise RefusedError(413, "too_many_items", message, param=param)
        sizes, before = [], len(prompt.encode(errors="replace"))
        for row, text in enumerate(request.texts):
            if len(text) == 0:
                message = f"{param}[{row}] is empty: leave it out, its vector would be meaningless"
                raise RefusedError(400, "empty_input", message, param=param)
            size = len(text.encode(errors="replace")) if isinstance(text, str) else 4 * len(text)
            sizes.append(before + size)
            if before + size > settings.max_text_bytes:
                own = f"{size:,} bytes" + (f" and its prompt {before:,}" if before else "")
                message = f"{param}[{row}] is {own}; max_text_bytes is {settings.max_text_bytes:,}: cut it"
                raise RefusedError(413, "text_too_large", message, param=param)
        if (total := sum(sizes)) > settings.max_body_bytes:
            message = (
                f"{param} is {total:,} bytes with the prompt of {before:,} bytes prepended to each text; "
                f"max_body_bytes is {settings.max_body_bytes:,}: send it in parts"
            )
            raise RefusedError(413, "body_too_large", message, param=param)
        return sizes

    def _tokens(self, request: EmbedRequest, prompt: str, first_row: int) -> list[Tokens]:
        limit = min(request.max_length or self.max_length, self.max_length)
        cut: Literal["start", "end"] = "start" if request.truncate == "START" else "end"
        try:
            rows = enumerate(request.texts, first_row)
            texts = [text if isinstance(text, str) else self._text_of(text, row) for row, text in rows]
            tokens = self.model.tokenise(texts, prompt=prompt, max_length=limit, cut=cut)
        except InputError as error:
            raise RefusedError(400, "bad_input", str(error), param=request.param) from error
        for row, item in enumerate(tokens, first_row):
            if item.truncated and request.truncate == "NONE":
                what = f"{request.param}[{row}] is {item.full_length:,} tokens and at most {limit:,} are read"
                message = f"{what}: shorten it, or set truncate to have it cut"
                raise RefusedError(400, "text_too_long", message, param=request.param)
        return tokens

    def _text_of(self, ids: Sequence[int], row: int) -> str:
        if self.model.text_of is None:  # nothing in the ids says which tokenizer they come from
            raise InputError(NO_IDS)
        try:
            return self.model.text_of(ids)
        except InputError as error:
            raise InputError(f"input {row}: {error}") from error

    async def pieces(self, request: EmbedRequest, deadline: float, gone: Gone) -> list[list[Piece]]:
        """Return all tokens of each text; raises RefusedError as ``embed`` does."""
        prompt = self.prompt(request)
        size = sum(self._sizes(request, prompt))
        if size > TOKENIZE_BYTES:
            message = f"{request.param} is {size:,} bytes with prompts and the limit is {TOKENIZE_BYTES:,}"
            raise RefusedError(413, "body_too_large", f"{message}: send it in parts", param=request.param)
        disconnect = asyncio.ensure_future(gone())
        try:
            return await self._tokenised(
                partial(self._all_pieces, request, prompt), size, disconnect, deadline
            )
        finally:
            disconnect.cancel()

    def _all_pieces(self, request: EmbedRequest, prompt: str) -> list[list[Piece]]:
        texts = [str(text) for text in request.texts]
        try:
            tokens = self.model.tokenise(texts, prompt=prompt, max_length=None, cut="end")
            if (count := sum(item.full_length for item in tokens)) > TOKENIZE_TOKENS:
                message = f"{request.param} is {count:,} tokens and the limit is {TOKENIZE_TOKENS:,}"
                raise RefusedError(413, "too_many_tokens", f"{message}: send it in parts")
            return [self.model.pieces(text, prompt) for text in texts]
        except InputError as error:
            raise RefusedError(400, "bad_input", str(error), param=request.param) from error

    def _urgent(self, request: EmbedRequest, tokens: Sequence[Tokens]) -> bool:
        """Whether a request counts as a query: by its type, or as one short text without a type."""
        if sum(len(item.input_ids) for item in tokens) > self.settings.query_tokens:
            return False
        if request.input_type is None:
            return request.instruction is not None or request.task is not None or len(tokens) == 1
        return request.input_type == "query"
