"""``nvembed compress``: make a model smaller."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from nvembed.cli.embedding import text_layout
from nvembed.cli.options import Compute, Count, FileOptions, Flag
from nvembed.cli.screen import long_progress, results, say
from nvembed.errors import DataError, InputError, OutputError
from nvembed.indexing.models import find_model
from nvembed.text.pack import batches, windows

if TYPE_CHECKING:
    from torch import Tensor

    from nvembed.encoder import Encoder
    from nvembed.weights.tensors import Checkpoint

Bits = Literal["int8", "int4"]
FIT_TEXTS = 20_000  # of a corpus, for a rotation or a static model
STATIC_DIMS = 256
CALIBRATION_TEXTS = 256
PIECE_CHARACTERS = 500  # documents are fitted in pieces, for more different texts
COUNT_CHARACTERS = 4_000  # long documents are counted in pieces


def compress(
    model: str,
    out: Path,
    /,
    *,
    scheme: Bits | None = None,
    embedding: Bits | None = None,
    dtype: Literal["float32", "bfloat16", "int8", "int4"] | None = None,
    vocabulary: list[Path] | None = None,
    tokens: Count | None = None,
    layers: Count | None = None,
    mlp_width: Count | None = None,
    dims: Count | None = None,
    fit: Path | None = None,
    static: Flag = False,
    calibrate: Path | None = None,
    reading: FileOptions = FileOptions(),
    compute: Compute = Compute(),
) -> None:
    """Make a model smaller: fewer bits, tokens, layers or dimensions.

    OUT opens like any other model. Measure it with `nvembed evaluate` before you use it.

    Examples:

        nvembed compress all-MiniLM-L6-v2 minilm-int8 --scheme int8

        nvembed compress nvidia/NV-Embed-v2 nv-embed-int4 --scheme int4

        nvembed compress google/embeddinggemma-300m gemma-en --vocabulary english/ --tokens 32000 \\
            --scheme int4 --dtype int8

        nvembed compress all-mpnet-base-v2 mpnet-static --static --fit corpus/

    Parameters
    ----------
    model
        A folder or a hub id.
    out
        Folder for the new model; it must not exist.
    scheme
        Bits of the stored weights of linear layers: int8, one scale per output; int4, a scale and a zero
        point per group of 32 inputs. Default: the numbers of MODEL.
    embedding
        Bits of the token embedding. Default with a scheme: int8.
    dtype
        How OUT is computed unless --dtype says otherwise. int8 is fastest on CPUs; int4 needs least memory.
        Default: the scheme.
    vocabulary
        Corpus whose tokens are kept: a file or a folder. Repeat it for several. Tokens that any text may
        need are kept in any case.
    tokens
        With --vocabulary: how many tokens are kept, the most frequent first. Default: all that occur.
    layers
        Keep only the first layers.
    mlp_width
        Keep only so many neurons of each feed-forward block, those with the largest weights.
    dims
        Length of the vectors. Alone: the first numbers, for models that are trained for it (Matryoshka).
    fit
        Corpus to fit to: a file or a folder, whose first texts are embedded. With --dims: a rotation after
        which the first numbers hold the most. With --static: the vectors and weights of tokens.
    static
        Write a static model: a vector per token, and a text is their mean. Much faster, with lower quality.
        --dims is the length of the vectors (default 256), --vocabulary keeps the tokens of a corpus,
        --embedding int8 stores the vectors in 8 bits, and --dtype is how MODEL is computed meanwhile.
    calibrate
        With --scheme int4: corpus whose first texts MODEL reads, so that weights are rounded with the least
        error for such texts (GPTQ) instead of to the nearest level. MODEL is loaded in float32.
    """
    from nvembed.compress.folder import Reduction
    from nvembed.compress.folder import compress as write
    from nvembed.compress.static import write_static
    from nvembed.weights.checkpoint import open_checkpoint

    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    if tokens is not None and vocabulary is None:
        raise InputError("--tokens needs --vocabulary: the corpus whose most frequent tokens are kept")
    if fit is not None and dims is None and not static:
        raise InputError("--fit needs --dims or --static: what is fitted to the corpus")
    if not static and all(
        value is None for value in (scheme, embedding, vocabulary, layers, mlp_width, dims)
    ):
        raise InputError("nothing to make smaller: pass --scheme, --vocabulary, --layers, --dims or --static")
    if static:
        layered = {"--scheme": scheme, "--layers": layers, "--mlp-width": mlp_width, "--calibrate": calibrate}
        if names := [name for name, value in layered.items() if value is not None]:
            raise InputError(f"--static has no layers: leave {' and '.join(names)} out")
        if embedding == "int4":
            raise InputError("--embedding is int4: expected int8 for a static model")
    elif calibrate is not None and (scheme != "int4" or mlp_width is not None):
        raise InputError("--calibrate needs --scheme int4, and all neurons: leave --mlp-width out")
    folder = find_model(model)
    source = open_checkpoint(folder)
    kept = None
    if vocabulary is not None:
        kept = _kept_tokens(source, vocabulary, tokens, reading)
    if static:
        table = _static_table(source, kept, fit, dims, reading, replace(compute, dtype=dtype))
        write_static(out, source, table, tokens=kept, bits="int8" if embedding is not None else None)
        _report(out, folder, model)
        return
    reduction = Reduction(
        scheme=scheme,
        embedding=embedding or ("int8" if scheme is not None else None),
        dtype=dtype,
        tokens=kept,
        layers=layers,
        mlp_width=mlp_width,
        dims=dims,
        rotation=None if fit is None or dims is None else _rotation(folder, fit, dims, reading, compute),
        products=None if calibrate is None else _products(folder, calibrate, reading),
    )
    write(out, source, reduction)
    _report(out, folder, model)


def _report(out: Path, folder: Path, model: str) -> None:
    from nvembed.compress.folder import size_bytes

    results().print(f"{out}: {size_bytes(out) / 1e6:,.1f} MB, {model} has {size_bytes(folder) / 1e6:,.1f} MB")


def _documents(corpus: Path, reading: FileOptions) -> Iterator[str]:
    """Yield the texts of a corpus.

    Raises:
        DataError: a document that cannot be read.
    """
    from nvembed.read.corpus import list_files, read_documents

    for file in list_files(str(corpus)).files:
        for read in read_documents(file, field=reading.field, layout=text_layout(reading)):
            if isinstance(read.document, DataError):
                raise read.document
            yield read.document.text


def _kept_tokens(
    source: "Checkpoint", corpora: list[Path], size: int | None, reading: FileOptions
) -> np.ndarray:
    """Return the ids of the tokens that corpora use, with those that templates and prompts need."""
    from nvembed.compress.vocabulary import choose_tokens, counted, special_tokens
    from nvembed.weights.checkpoint import load_tokenizer

    tokenizer, rows = load_tokenizer(source), source.config.backbone.vocab_size
    texts = (
        text[start : start + COUNT_CHARACTERS]
        for corpus in corpora
        for text in _documents(corpus, reading)
        for start in range(0, len(text), COUNT_CHARACTERS)
    )
    with long_progress("counting tokens") as update:
        characters = 0

        def ids() -> Iterator[np.ndarray]:
            nonlocal characters
            for window in windows(texts, 4096, 4_000_000):
                characters += sum(map(len, window))
                update(characters, characters)
                yield np.concatenate([item.input_ids for item in tokenizer([t or " " for t in window])])

        counts = counted(ids(), rows)
    if not counts.any():
        raise DataError(f"{', '.join(map(str, corpora))}: no text to count tokens of")
    prompts = [] if source.prompts is None else [*source.prompts.texts.values(), source.prompts.plain]
    files = source.tokenizer_files()
    form = json.loads(files["tokenizer.json"])
    configs = [json.loads(files[name]) for name in files if name != "tokenizer.json"]
    config_path = (source.tokenizer_folder or source.folder) / "config.json"
    needed = special_tokens(form, *configs, json.loads(config_path.read_bytes()))
    needed |= {int(n) for prompt in prompts if prompt for n in tokenizer([prompt])[0].input_ids}
    needed |= {n for n in (source.text.bos_id, source.text.eos_id) if n is not None and n >= 0}
    kept = choose_tokens(form, counts, needed, size)
    kept = kept[kept < rows]
    share = counts[kept].sum() / counts.sum()
    say(f"{len(kept):,} of {rows:,} tokens are kept; they are {100 * share:.2f} % of the corpus's tokens")
    return kept


def _rotation(folder: Path, corpus: Path, dims: int, reading: FileOptions, compute: Compute) -> np.ndarray:
    """Return the rotation that keeps most of the vectors of a corpus's first texts."""
    from nvembed.cli.models import load
    from nvembed.compress.folder import principal_rotation

    encoder = load(str(folder), device=compute.device, dtype=compute.dtype)
    _check_dims(dims, encoder)
    vectors = _vectors(encoder, list(islice(_documents(corpus, reading), FIT_TEXTS)))
    rotation = principal_rotation(vectors, dims)
    share = np.square(vectors @ rotation.T).sum(1).mean()
    say(f"{dims:,} of {encoder.dim:,} dimensions hold {100 * share:.1f} % of {len(vectors):,} texts' vectors")
    return rotation


def _check_dims(dims: int, encoder: "Encoder") -> None:
    if not 1 <= dims <= encoder.dim:
        raise InputError(f"--dims is {dims:,}: expected 1 to {encoder.dim:,}")


def _vectors(encoder: "Encoder", texts: list[str]) -> np.ndarray:
    parts = encoder.stream(texts, prompt=encoder.document_prompt(), show_progress=True)
    return np.concatenate([part.vectors for part in parts])


def _products(folder: Path, corpus: Path, reading: FileOptions) -> dict[str, "Tensor"]:
    """Return what the inputs of a model's layers look like for the first texts of a corpus."""
    from nvembed.cli.models import load
    from nvembed.compress.calibrate import input_products
    from nvembed.model.nv_embed import PackedBatch

    encoder = load(str(folder), device="cpu", dtype="float32")
    texts = list(islice(_pieces(corpus, reading), CALIBRATION_TEXTS))
    if not texts:
        raise DataError(f"{corpus}: no text to calibrate with")
    tokens = encoder.tokenizer(texts, prompt=encoder.document_prompt())
    model = encoder.replicas[0]
    say(f"calibrating with {len(texts):,} texts, {sum(len(item.input_ids) for item in tokens):,} tokens")
    packed = (
        PackedBatch.of(batch.input_ids, batch.lengths, batch.pool_index, batch.pool_lengths, model.device)
        for batch in batches(tokens, encoder.batch_tokens())
    )
    return input_products(model, packed)


def _static_table(
    source: "Checkpoint",
    kept: np.ndarray | None,
    corpus: Path | None,
    dims: int | None,
    reading: FileOptions,
    compute: Compute,
) -> np.ndarray:
    """Return the token vectors of a static model, (V, d) float32."""
    from nvembed.cli.models import load
    from nvembed.compress.folder import Reduction, tokenizer_files
    from nvembed.compress.static import FitTexts, counted_shares, static_table, zipf_shares
    from nvembed.compress.vocabulary import counted
    from nvembed.text.tokenize import TextTokenizer
    from nvembed.weights.static import STATIC_TEXT, static_tokenizer

    encoder = load(str(source.folder), device=compute.device, dtype=compute.dtype)
    dims = min(STATIC_DIMS, encoder.dim) if dims is None else dims
    _check_dims(dims, encoder)
    rows = min(encoder.tokenizer.vocab_size, source.config.backbone.vocab_size)
    ids = np.arange(rows) if kept is None else kept
    shares, fitted = zipf_shares(rows)[ids], None
    if corpus is not None:
        texts = list(islice(_pieces(corpus, reading), FIT_TEXTS))
        if len(texts) < dims:
            raise DataError(f"{corpus} has {len(texts):,} texts: expected at least {dims:,}, as --dims")
        content = tokenizer_files(source, Reduction(tokens=kept))["tokenizer.json"]
        tokens = [item.input_ids for item in TextTokenizer(static_tokenizer(content), STATIC_TEXT)(texts)]
        shares = counted_shares(counted(iter(tokens), len(ids)))
        lengths = np.array([len(item) for item in tokens])
        fitted = FitTexts(np.concatenate(tokens).astype(np.int64), lengths, _vectors(encoder, texts))
    return static_table(_token_vectors(encoder, ids), shares, dims, fitted)


def _pieces(corpus: Path, reading: FileOptions) -> Iterator[str]:
    """Yield pieces of the documents of a corpus that are not blank."""
    for text in _documents(corpus, reading):
        for start in range(0, len(text), PIECE_CHARACTERS):
            if piece := text[start : start + PIECE_CHARACTERS].strip():
                yield piece


def _token_vectors(encoder: "Encoder", ids: np.ndarray) -> np.ndarray:
    """Return the vector of each token by itself, with the document prompt and the special tokens."""
    from nvembed.text.tokenize import Tokens

    prompt = encoder.document_prompt()
    head, _, _, tail = encoder.tokenizer.parts("a", prompt, encoder.max_length)
    [example] = encoder.tokenizer(["a"], prompt=prompt)
    size = len(head) + 1 + len(tail)
    count = max(1, encoder.batch_tokens() // size)
    vectors = np.empty((len(ids), encoder.dim), dtype=np.float32)
    with long_progress("embedding tokens") as update:
        for start in range(0, len(ids), count):
            batch = [
                Tokens(np.array([*head, number, *tail], dtype=np.int32), example.pool_start, size)
                for number in ids[start : start + count]
            ]
            vectors[start : start + count] = encoder.embed_tokens(batch)
            update(start + len(batch), len(ids))
    return vectors
