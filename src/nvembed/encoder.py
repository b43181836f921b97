"""The class `Encoder`: unit vectors of texts."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, get_args

import numpy as np
import torch

from nvembed.errors import InputError, NumericsError, OutputError
from nvembed.model.compiled import compile_layers, graph_short_texts
from nvembed.model.config import EmbeddingGemma2Config, GemmaConfig
from nvembed.model.device import (
    DTYPES,
    OnHost,
    batch_tokens_for,
    memory_errors,
    no_pause,
    paced,
    parse_devices,
)
from nvembed.model.float8 import check_float8
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.model.pooling import LATE_POOLINGS
from nvembed.model.quantised import Products, activation_dtype, scheme_of
from nvembed.text.late import LateDocument, late_batches, late_groups, late_windows
from nvembed.text.model_prompts import ModelPrompts, place_titles
from nvembed.text.pack import Batch, batches, windows
from nvembed.text.prompt import format_prompt, instruction_for
from nvembed.text.tokenize import TextTokenizer, Tokens, check_texts
from nvembed.vectors.embeddings import Embeddings, join, shortened
from nvembed.vectors.metric import cosine
from nvembed.weights.checkpoint import fingerprint, load_model, load_tokenizer, open_checkpoint
from nvembed.weights.hub import model_folder
from nvembed.weights.save import copy_model, save_checkpoint
from nvembed.weights.save_sentence_transformers import save_sentence_transformers
from nvembed.weights.tensors import Checkpoint

Layout = Literal["nvembed", "sentence-transformers"]
_OVERFLOWING = (GemmaConfig, EmbeddingGemma2Config)  # their activations leave float16's range

SCHEMES: dict[str, Products] = {"int8": "int8", "int4": "int4", "fp8": "fp8"}

# Texts are read, tokenised and sorted one window at a time, so that memory is limited for any stream.
WINDOW_TEXTS = 16_384
WINDOW_CHARACTERS = 16_000_000


class Encoder:
    """A model, its tokenizer and the devices it runs on.

    >>> model = Encoder.from_pretrained("nvidia/NV-Embed-v2", device="cuda", dtype="bfloat16")
    >>> q = model.encode_query(["who wrote it?"], instruction="Given a question, retrieve passages")
    >>> d = model.encode_document(["It was written by hand."])
    >>> model.similarity(q, d)
    """

    def __init__(
        self,
        replicas: Sequence[NVEmbed],
        tokenizer: TextTokenizer,
        *,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Wrap a loaded model; ``replicas`` has it once for each device."""
        self.replicas = list(replicas)
        self.tokenizer = tokenizer
        self.checkpoint = checkpoint

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: str | Sequence[str] | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        pooling: str | None = None,
        compiled: bool = False,
    ) -> "Encoder":
        """Load a model from a folder or the hub, in the layout of NV-Embed or of sentence-transformers.

        Args:
            path_or_id: a folder, or a hub id such as ``nvidia/NV-Embed-v2``.
            device: ``cpu``, ``cuda``, ``cuda:1``, or several of them, which share the work; ``None`` is
                ``cuda`` if there is one.
            dtype: of weights and activations: ``float32``, ``bfloat16`` or ``float16``. Softmax, norms,
                pooling and output are float32. ``int8`` rounds weights and activations to 8 bits for the
                products, ``int4`` the weights alone to 4 bits (`model.quantised`), ``fp8`` both to 8-bit
                floats, for GPUs with FP8 products (`model.float8`). ``None`` is the dtype of a compressed
                model, else bfloat16 on CUDA and float32 on CPU.
            revision: a hub branch, tag or commit.
            pooling: ``mean``, ``cls`` or ``last``, for a transformers folder whose config does not name it.
            compiled: compile the layers with torch.compile, and on CUDA also replay the work of single short
                texts as graphs. The first batches take up to minutes; vectors change only by rounding.

        Raises:
            ConfigError: a config or tokenizer is missing, damaged, or of an architecture that is not
                supported.
            WeightsError: the folder or its weights are missing or damaged, or do not fit the config.
            DownloadError: the hub cannot be reached, or has no such model.
            InputError: ``device`` or ``dtype`` is unknown, the device has no FP8 products, or the model
                overflows in ``float16``.
        """
        devices = parse_devices(device)
        if dtype is not None and dtype not in DTYPES and dtype not in SCHEMES:
            raise InputError(f"dtype is {dtype!r}: expected one of {', '.join([*DTYPES, *SCHEMES])}")
        if dtype == "fp8":
            for each in devices:
                check_float8(each)
        checkpoint = open_checkpoint(model_folder(path_or_id, revision=revision), pooling=pooling)
        for note in checkpoint.notes:
            warnings.warn(f"{checkpoint.folder}: {note}", stacklevel=2)
        if dtype is None:
            dtype = checkpoint.dtype or ("bfloat16" if devices[0].type == "cuda" else "float32")
        if dtype == "float16" and isinstance(checkpoint.config.backbone, _OVERFLOWING):
            raise InputError("dtype is float16, in which Gemma overflows: use bfloat16 or float32")
        tokenizer = load_tokenizer(checkpoint)
        scheme = SCHEMES.get(dtype)
        replicas = [
            load_model(checkpoint, device=d, dtype=DTYPES.get(dtype) or activation_dtype(d), scheme=scheme)
            for d in devices
        ]
        for model in replicas if compiled else ():
            compile_layers(model)
            graph_short_texts(model)
        return cls(replicas, tokenizer, checkpoint=checkpoint)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        layout: Layout | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        """Write the checkpoint of this encoder to a new folder.

        Tensors keep their stored dtype, whatever ``dtype`` they were loaded as.

        Args:
            layout: ``"nvembed"`` or ``"sentence-transformers"``; ``None`` is the layout that the checkpoint
                was read from. Latent attention opens in sentence-transformers where this package is
                installed, with ``SentenceTransformer(folder, trust_remote_code=True)``.
            prompts: for the layout of sentence-transformers: strings to prepend to texts, by name, such as
                ``{"query": "Instruct: ...\\nQuery: "}``. ``None`` keeps the model's own.

        Raises:
            InputError: NV-Embed's layout for a model of another, or prompts in NV-Embed's layout.
            OutputError: the folder exists, the disk is full, or the encoder has no checkpoint.
        """
        source = self.checkpoint
        if source is None:
            raise OutputError("this encoder has no checkpoint: use weights.save with its model")
        if layout not in (None, *get_args(Layout)):
            raise InputError(f"layout is {layout!r}: expected one of {', '.join(get_args(Layout))}")
        if layout == "sentence-transformers":
            save_sentence_transformers(folder, source, prompts=prompts)
            return
        if layout == "nvembed" and source.prompts is not None:
            raise InputError(f"{source.folder} is not in NV-Embed's layout: expected 'sentence-transformers'")
        if prompts is not None:
            raise InputError("prompts are stored with layout='sentence-transformers' only")
        if source.prompts is not None or source.dtype is not None:  # compressed: kept as it is
            copy_model(source.folder, Path(folder))
            return
        save_checkpoint(
            folder,
            source.config,
            source.text,
            ((name, source.read(name)) for name in source.tensors),
            tokenizer_files=source.tokenizer_files(),
        )

    @property
    def dim(self) -> int:
        """Length of a vector, after the model's ``truncate_dim`` if it has one."""
        stored = None if self.checkpoint is None else self.checkpoint.truncate_dim
        return stored or self.replicas[0].config.dim

    @property
    def max_length(self) -> int:
        """The most tokens of one text that the model reads, including prompt, BOS and EOS."""
        return self.tokenizer.settings.max_length

    @property
    def dtype(self) -> str:
        """Dtype of weights and activations, such as ``"bfloat16"`` or ``"int8"``."""
        return scheme_of(self.replicas[0]) or str(self.replicas[0].dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that identify the model for caches, whatever its dtype.

        Raises:
            InputError: the encoder has no checkpoint.
        """
        if self.checkpoint is None:
            raise InputError("this encoder has no checkpoint, which a fingerprint requires")
        return fingerprint(self.checkpoint)

    def encode_query(
        self,
        texts: Iterable[str],
        *,
        instruction: str | None = None,
        task: str | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Encode queries with their prompt prepended: (n, d) float32. Other arguments: see ``encode``.

        NV-Embed's prompt is ``"Instruct: {instruction}\\nQuery: "``. Models with their own prompts use their
        query prompt.

        Args:
            instruction: the sentence that describes the task.
            task: a task with a known instruction, such as ``NQ`` (recipes/nv_embed_v2/instructions.toml), in
                place of ``instruction``; for a model with its own prompts, the name of one of them.

        Raises:
            InputError: instruction and task are both passed, or are invalid; also as ``encode``.
            NumericsError: a vector is not finite.
        """
        return self.encode(
            texts,
            prompt=self.prompt(instruction=instruction, task=task),
            max_length=max_length,
            truncate=truncate,
            truncate_dim=truncate_dim,
            show_progress=show_progress,
        )

    def encode_document(
        self,
        texts: Iterable[str],
        *,
        titles: Sequence[str] | None = None,
        task: str | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Encode passages: (n, d) float32, with a prompt if the model or ``task`` has one for passages.

        Args:
            titles: one for each text, or ``""``. They go where the model's document prompt has a place for
                them (``title: none | text:``), else before the text, as in BEIR.

        Raises:
            InputError, NumericsError: as ``encode``; also another number of titles than of texts.
        """
        prompt = self.document_prompt(task=task)
        if titles is not None:
            prompt, texts = place_titles(prompt, list(texts), titles)
        return self.encode(
            texts,
            prompt=prompt,
            max_length=max_length,
            truncate=truncate,
            truncate_dim=truncate_dim,
            show_progress=show_progress,
        )

    @property
    def prompts(self) -> ModelPrompts | None:
        """The model's own prompts; None for an NV-Embed, which uses instructions."""
        return None if self.checkpoint is None else self.checkpoint.prompts

    def document_prompt(self, *, task: str | None = None) -> str:
        """Return the string that is prepended to a passage; raise InputError for an unknown task."""
        if self.prompts is not None:
            return self.prompts.document(task=task)
        return "" if task is None else format_prompt(instruction_for(task, "corpus"))

    def prompt(self, *, instruction: str | None = None, task: str | None = None) -> str:
        """Return the string that is prepended to a query, ``""`` for an NV-Embed without arguments.

        Raises:
            InputError: instruction and task are both passed, or are invalid.
        """
        if instruction is not None and task is not None:
            raise InputError(f"expected instruction or task, got both ({task!r}): pass one")
        if self.prompts is not None:
            return self.prompts.query(instruction=instruction, task=task)
        if task is not None:
            instruction = instruction_for(task)
        return format_prompt(instruction or "")

    def encode(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Return one unit vector per text, (n, d) float32; without texts, (0, d).

        Args:
            texts: a list, or an iterable of any length: memory for texts and tokens is limited.
            prompt: the exact string to prepend to each text. NV-Embed does not pool its tokens. ``None`` is
                the model's default prompt, which few models have.
            max_length: in tokens; ``None`` is ``self.max_length``.
            truncate: cut longer texts at their end with a warning; ``False`` refuses them.
            truncate_dim: keep the first dimensions and normalise again. Models that were trained for it
                (Matryoshka) keep most of their quality; NV-Embed v2 was not. ``None`` is ``self.dim``.
            batch_tokens: tokens computed at a time; ``None`` depends on the free memory.
            show_progress: show a progress bar on standard error.

        Raises:
            InputError: a text is not a string, not valid Unicode, too long, or has no token to pool; or an
                argument is out of range.
            NumericsError: a vector is not finite.
        """
        parts = self.stream(
            texts,
            prompt=prompt,
            max_length=max_length,
            truncate=truncate,
            truncate_dim=truncate_dim,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )
        whole = join(list(parts), truncate_dim or self.dim)
        limit = self.max_length if max_length is None else max_length
        _warn(whole.truncated, f"cut to {limit:,} tokens")
        _warn(whole.empty, "empty; their vectors are meaningless")
        return whole.vectors

    def stream(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> Iterator[Embeddings]:
        """Yield the vectors of ``encode`` in windows of texts, in order, with token counts and cuts.

        A window is freed when the next one is requested. Arguments and errors: see ``encode``.
        """
        if prompt is None:
            prompt = "" if self.prompts is None else self.prompts.plain
        if truncate_dim is None and self.checkpoint is not None:
            truncate_dim = self.checkpoint.truncate_dim
        whole = self.replicas[0].config.dim
        if truncate_dim is not None and not 0 < truncate_dim <= whole:
            raise InputError(f"truncate_dim is {truncate_dim}: expected 1 to {whole:,}")
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}: expected 1 or more, or None")
        if isinstance(texts, str | bytes):
            check_texts(texts)
        total = len(texts) if isinstance(texts, Sequence) else None

        def tokenise(window: list[str], first_row: int) -> list[Tokens]:
            return self.tokenizer(
                window, prompt=prompt, max_length=max_length, truncate=truncate, first_row=first_row
            )

        budget = batch_tokens or min(map(self.batch_tokens, range(len(self.replicas))))

        def prepare(window: list[str], first_row: int) -> "_Window":
            tokens = tokenise(window, first_row)
            return _Window(window, tokens, batches(tokens, budget), self.replicas[0].config.dim)

        opened: deque[_Window] = deque()  # whose batches are being computed
        with ThreadPoolExecutor(1, "tokenise") as ahead, _progress(total, show_progress) as advance:

            def work() -> Iterator[Batch]:
                for window in _prepared(windows(texts, WINDOW_TEXTS, WINDOW_CHARACTERS), prepare, ahead):
                    opened.append(window)
                    yield from window.batches

            for batch, vectors in self._run(work()):
                window = opened[0]
                window.vectors[batch.rows] = vectors
                window.left -= 1
                advance(len(batch.rows))
                if not window.left:
                    opened.popleft()
                    self._check_finite(window.vectors)
                    yield window.embeddings(truncate_dim)

    def stream_late(
        self,
        documents: Iterable[LateDocument],
        *,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
    ) -> Iterator[Embeddings]:
        """Yield the vectors of the passages of documents, in order, some documents at a time: late chunking.

        Each document is read whole, or in overlapping windows where it is longer than ``max_length``, and a
        passage's vector is pooled from the states of its own tokens, without BOS, prompt and EOS.

        Raises:
            InputError: the model's pooling has no part that belongs to a passage; also as ``encode``.
            NumericsError: a vector is not finite.
        """
        check_late(self.replicas[0].config.pooling)
        if truncate_dim is None and self.checkpoint is not None:
            truncate_dim = self.checkpoint.truncate_dim
        budget = batch_tokens or min(map(self.batch_tokens, range(len(self.replicas))))
        for group in late_groups(documents):
            passes = list(late_windows(self.tokenizer, group, max_length=max_length or self.max_length))
            texts = [d.text[start:end] for d in group for start, end in d.passages]
            vectors = np.empty((len(texts), self.replicas[0].config.dim), dtype=np.float32)
            work = list(late_batches(passes, budget))
            results = self._run([batch for batch, _ in work])
            for (_, rows), (_, result) in zip(work, results, strict=True):
                vectors[rows] = result
            self._check_finite(vectors)
            yield Embeddings(
                shortened(vectors, truncate_dim),
                np.array([b - a for each in passes for a, b in each.passages], dtype=np.int64),
                np.array([cut for each in passes for cut in each.cut], dtype=bool),
                np.array([not text or text.isspace() for text in texts], dtype=bool),
            )

    def embed_tokens(
        self, tokens: Sequence[Tokens], *, replica: int = 0, pause: Callable[[], None] | None = None
    ) -> np.ndarray:
        """Return the unit vectors, (n, d) float32, of tokenised texts, computed as one batch on one device.

        Args:
            replica: the index of the device.
            pause: called twice in each layer. It may compute an urgent batch with this method; on CUDA the
                host is at most one pause ahead of the device.

        Raises:
            MemoryError: the batch does not fit on the device.
            NumericsError: a vector is not finite.
        """
        model = self.replicas[replica]
        count = sum(len(item.input_ids) for item in tokens)
        [batch] = batches(tokens, count)
        with memory_errors(f"a batch of {count:,} tokens does not fit on {model.device}"):
            result = _forward(model, batch, paced(pause, model.device)).numpy()
        self._check_finite(result)
        stored = None if self.checkpoint is None else self.checkpoint.truncate_dim
        return shortened(np.asarray(result[np.argsort(batch.rows)]), stored)

    def batch_tokens(self, replica: int = 0) -> int:
        """Return how many tokens a batch should have on a device; on CUDA this depends on the free memory."""
        model = self.replicas[replica]
        return batch_tokens_for(model.config, model.device, model.dtype)

    def _check_finite(self, vectors: np.ndarray) -> None:
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(1)))
            raise NumericsError(
                f"the vector of text {row} (of a window of {len(vectors)}) is not finite in {self.dtype}: "
                "load with dtype='float32' or 'bfloat16', and check the weights with `nvembed check`"
            )

    def _run(self, work: Iterable[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Compute batches on the replicas; each takes the next batch when it is free.

        A CUDA device computes the next batch while the caller uses the previous result.
        """
        pending: deque[tuple[Batch, OnHost]] = deque()
        if len(self.replicas) == 1:
            lag = int(self.replicas[0].device.type == "cuda")
            for batch in work:
                pending.append((batch, _forward(self.replicas[0], batch)))
                if len(pending) > lag:
                    batch, result = pending.popleft()
                    yield batch, result.numpy()
            for batch, result in pending:
                yield batch, result.numpy()
            return
        free: SimpleQueue[NVEmbed] = SimpleQueue()
        for replica in self.replicas:
            free.put(replica)

        def run(batch: Batch) -> tuple[Batch, np.ndarray]:
            replica = free.get()
            try:
                return batch, _forward(replica, batch).numpy()
            finally:
                free.put(replica)

        futures: deque[Future[tuple[Batch, np.ndarray]]] = deque()
        with ThreadPoolExecutor(len(self.replicas), "replica") as pool:
            try:
                for batch in work:
                    futures.append(pool.submit(run, batch))
                    if len(futures) > 2 * len(self.replicas):
                        yield futures.popleft().result()
                while futures:
                    yield futures.popleft().result()
            finally:
                for future in futures:
                    future.cancel()

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the cosine of each row of ``a`` (n, d) with each row of ``b`` (m, d): (n, m) float32."""
        return cosine(a, b)

    def __repr__(self) -> str:
        devices = ", ".join(str(replica.device) for replica in self.replicas)
        where = self.checkpoint.folder if self.checkpoint else "memory"
        return f"Encoder({str(where)!r}, dim={self.dim}, dtype={self.dtype}, device={devices})"


def check_late(pooling: str) -> None:
    """Refuse late chunking for a pooling that does not average tokens.

    Raises:
        InputError: the pooling is not one of ``LATE_POOLINGS``.
    """
    if pooling not in LATE_POOLINGS:
        raise InputError(
            f"late chunking needs a model whose vector is a mean over tokens; this one pools by {pooling!r}, "
            "which a part of a text does not have: leave late chunking out, or choose another model"
        )


class _Window:
    """Tokenised texts, their batches, and the vectors computed so far."""

    def __init__(self, texts: list[str], tokens: list[Tokens], batches: list[Batch], dim: int) -> None:
        self.texts = texts
        self.tokens = tokens
        self.batches = batches
        self.left = len(batches)
        self.vectors = np.empty((len(tokens), dim), dtype=np.float32)

    def embeddings(self, truncate_dim: int | None) -> Embeddings:
        return Embeddings(
            shortened(self.vectors, truncate_dim),
            np.array([len(item.input_ids) for item in self.tokens], dtype=np.int64),
            np.array([item.truncated for item in self.tokens], dtype=bool),
            np.array([not text or text.isspace() for text in self.texts], dtype=bool),
        )


def _prepared(
    windows: Iterable[list[str]], prepare: Callable[[list[str], int], _Window], ahead: ThreadPoolExecutor
) -> Iterator[_Window]:
    """Tokenise and pack each window while the previous one is computed."""
    first_row = 0
    pending: Future[_Window] | None = None
    for texts in windows:
        if pending is not None:
            following = ahead.submit(prepare, texts, first_row)
            yield pending.result()
            pending = following
        else:  # few texts need no second thread
            pending = Future()
            pending.set_result(prepare(texts, 0))
        first_row += len(texts)
    if pending is not None:
        yield pending.result()


@torch.inference_mode()
def _forward(model: NVEmbed, batch: Batch, pause: Callable[[], None] = no_pause) -> OnHost:
    packed = PackedBatch.of(
        batch.input_ids, batch.lengths, batch.pool_index, batch.pool_lengths, model.device
    )
    return OnHost(model(packed, pause))


def _warn(rows: np.ndarray, what: str) -> None:
    if rows.any():
        count, first = int(rows.sum()), int(rows.argmax())
        warnings.warn(f"{count:,} of {len(rows):,} texts: {what} (the first is text {first})", stacklevel=3)


@contextmanager
def _progress(total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that adds a number of texts to the progress bar."""
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task("texts", total=total)
        yield lambda count: bar.advance(row, count)
