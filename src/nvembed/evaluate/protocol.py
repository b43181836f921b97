"""MTEB's protocol: from a task and an encode function to scores.

Its seeds, sample counts and settings of the learners are in ``recipes/nv_embed_v2/evaluation.toml``. Every
kind of task is compared with mteb's own code on the same data (``tests/evaluate/test_mteb.py``).
"""

from nvembed.evaluate.learn import classification, clustering
from nvembed.evaluate.outcome import Embed, Prompts, TaskOutcome
from nvembed.evaluate.rank import reranking, retrieval
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.similarity import bitext_mining, pair_classification, sts, summarization
from nvembed.evaluate.tasks import Bitext, Labelled, Pairs, Retrieval, Sets, Task


def run_task(task: Task, embed: Embed, prompts: Prompts) -> TaskOutcome:
    """Evaluate one task with an encode function."""
    data = task.data
    if isinstance(data, Retrieval):
        ranking = reranking if task.kind == "reranking" else retrieval
        return ranking(task, data, embed, prompts)
    if isinstance(data, Pairs):
        pairwise = pair_classification if task.kind == "pair_classification" else sts
        return pairwise(data, embed, prompts.query)
    if isinstance(data, Bitext):
        return bitext_mining(data, embed, prompts.query)
    if isinstance(data, Labelled):
        samples = task.settings.samples_per_label or protocol().classification.samples_per_label
        return classification(data, embed, prompts.query, samples_per_label=samples)
    if isinstance(data, Sets):
        return clustering(data, embed, prompts.query)
    return summarization(data, embed, prompts.query)
