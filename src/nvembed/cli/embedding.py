"""Corpora and models together: the settings of a model's vectors, and corpora embedded beside themselves."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from nvembed.cli.models import Tally, load
from nvembed.cli.options import Dtype, FileOptions, Reading
from nvembed.cli.screen import progress, say, warn
from nvembed.embed.folder import HOME
from nvembed.errors import DataError
from nvembed.files import as_utf8
from nvembed.indexing.models import embed_settings, facts_of
from nvembed.read.documents import SCANNED, UNREAD
from nvembed.read.lines import LINE_KINDS, TABLE_KINDS, TextLayout
from nvembed.text.model_prompts import place_titles

if TYPE_CHECKING:
    from nvembed.embed.embedded import EmbeddedCorpus
    from nvembed.embed.passages import CutMode
    from nvembed.encoder import Encoder
    from nvembed.vectors.embeddings import Embeddings

Encode = Callable[[Sequence[str]], Iterable["Embeddings"]]

RECORD_KINDS = (*LINE_KINDS, *TABLE_KINDS)
SHOWN_NOTES = 10


@dataclass(frozen=True)
class ModelRecipe:
    """How to load a model and embed with it; it can be sent to another process."""

    name: str
    device: str | None
    dtype: str
    prompt: str
    max_length: int
    batch_tokens: int
    late_chunking: bool = False
    compiled: bool = False

    def encode(self) -> Callable[[Sequence[Any]], Iterator["Embeddings"]]:
        """Return the function that embeds; the model is loaded at its first call."""

        @cache
        def encoder() -> object:
            return load(self.name, device=self.device, dtype=cast(Dtype, self.dtype), compiled=self.compiled)

        def encode_late(documents: Sequence[Any]) -> Iterator["Embeddings"]:
            return encoder().stream_late(  # type: ignore[attr-defined, no-any-return]
                documents, max_length=self.max_length, batch_tokens=self.batch_tokens
            )

        def encode(texts: Sequence[str]) -> Iterator["Embeddings"]:
            return encoder().stream(  # type: ignore[attr-defined, no-any-return]
                texts, prompt=self.prompt, max_length=self.max_length, batch_tokens=self.batch_tokens
            )

        return encode_late if self.late_chunking else encode


def counting(encode: Encode, tally: Tally) -> Encode:
    """Return ``encode``, counting the texts that are computed."""

    def encode_counted(texts: Sequence[str]) -> Iterator["Embeddings"]:
        for part in encode(texts):
            tally.add(part)
            yield part

    return encode_counted


def text_layout(reading: FileOptions) -> TextLayout:
    """Return the layout of text files by ``--delimiter`` and ``--encoding``."""
    return TextLayout(reading.delimiter, reading.encoding)


def check_corpus(corpus: Path, reading: Reading) -> None:
    """Report a fault at the beginning of a corpus, before a model is loaded."""
    from nvembed.read.corpus import list_files, read_documents

    first = list_files(str(corpus), follow_links=reading.follow_links).files[0]
    read = next(read_documents(first, field=reading.field, layout=text_layout(reading)), None)
    if read is not None and isinstance(read.document, DataError) and first.kind in RECORD_KINDS:
        raise read.document


def embed_beside(
    encoder: "Encoder",
    corpus: Path,
    *,
    model: str,
    prompt: str,
    reading: Reading,
    whole: bool = False,
) -> "EmbeddedCorpus":
    """Embed a folder or file as ``nvembed embed`` does, into a cache beside it, or update the cache.

    Args:
        model: the model's name, for the manifest.
        reading: ``cache`` is in place of ``.nvembed`` beside the corpus.
        whole: leave documents whole, a passage each; then a file or record that cannot be read is an error.
    """
    from nvembed.embed.embedded import open_embedded
    from nvembed.embed.job import local_engine, open_job
    from nvembed.embed.records import CorpusReading, plain
    from nvembed.read.corpus import list_files

    facts = facts_of(encoder, prompt=prompt, max_length=reading.max_length)
    sizes = None if whole else (None, None)
    cut: CutMode = "sentences" if whole else "structure"
    settings = embed_settings(facts, prompt, sizes, storage="float32", cut=cut)
    how = CorpusReading(
        field=reading.field,
        on_error="stop" if whole else "skip",
        delimiter=reading.delimiter,
        encoding=reading.encoding,
    )
    files = list_files(str(corpus), follow_links=reading.follow_links)
    key = hashlib.sha256(json.dumps([asdict(settings), plain(how)]).encode()).hexdigest()[:16]
    home = cache_folder(corpus, reading.cache)
    tally = Tally()
    encode = counting(
        partial(
            encoder.stream,
            prompt=place_titles(prompt)[0],
            max_length=settings.max_length,
            batch_tokens=settings.batch_tokens,
        ),
        tally,
    )
    start = perf_counter()
    with progress("embedding the corpus") as update:
        _remove_old_caches(home)
        with open_job(home / key, files, how, lambda *_: None, update=True) as job:
            earlier = job.earlier_shards(prompt)
            compute = earlier.reusing(encode) if earlier is not None else encode
            engine = local_engine(facts.build_offsets(), compute)
            names = {"corpus": as_utf8(str(corpus)), "model": as_utf8(model)}
            manifest = job.run(settings, engine, update, names=names)
    if tally.texts:
        say(tally.message(perf_counter() - start))
    warn_of(manifest)
    return open_embedded(home / key)


def cache_folder(corpus: Path, root: Path | None = None) -> Path:
    """Return where the vectors of a corpus are kept: ``.nvembed`` in its folder or beside its file.

    Args:
        root: in place of ``.nvembed``. Several corpora may share it: each has a folder of its name in it.
    """
    if root is None and corpus.is_dir():
        return corpus / HOME
    return (root or corpus.parent / HOME) / corpus.resolve().name


def _remove_old_caches(home: Path) -> None:
    """Remove the vectors that earlier versions kept in files of another form."""
    for path in home.glob("*-*/texts.bin"):
        shutil.rmtree(path.parent, ignore_errors=True)


def warn_of(manifest: Mapping[str, Any]) -> None:
    """Warn about passages that were cut or are empty, and files and records that were not read."""
    counts, settings = manifest["counts"], manifest["settings"]
    notes = manifest["notes"]
    warnings = notes[:SHOWN_NOTES]
    if len(notes) > SHOWN_NOTES:
        warnings.append(f"and {len(notes) - SHOWN_NOTES:,} more notes (manifest.json lists them)")
    if counts["truncated"]:
        warnings.append(f"{counts['truncated']:,} passages were cut to {settings['max_length']:,} tokens")
    if counts["empty"]:
        warnings.append(f"{counts['empty']:,} passages are empty; their vectors are meaningless")
    if skipped := manifest["skipped"]:
        reasons = [entry["reason"] for entry in skipped[:SHOWN_NOTES]]
        if len(skipped) > SHOWN_NOTES:
            reasons.append(f"and {len(skipped) - SHOWN_NOTES:,} more (manifest.json lists them)")
        warnings.append("\n  ".join([f"files or records skipped: {len(skipped):,}", *reasons]))
        if scanned := [entry["path"] for entry in skipped if SCANNED in entry["reason"]]:
            names = ", ".join(scanned[:SHOWN_NOTES]) + (", ..." if len(scanned) > SHOWN_NOTES else "")
            warnings.append(f"scanned PDFs without text: {len(scanned):,} ({names})")
    if ignored := manifest["ignored"]:
        kinds = ", ".join(f"{suffix or 'no suffix'}: {count:,}" for suffix, count in ignored.items())
        warnings.append(f"files of other kinds were not read ({kinds})")
        advice = (f"{suffix} files: {UNREAD[suffix]}" for suffix in ignored if suffix in UNREAD)
        warnings += advice
    for warning in warnings:
        warn(warning)
