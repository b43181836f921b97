"""Our protocol against mteb's own code on the same data, kind by kind; mteb's tasks through our wrapper."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from eval_folders import encode, make_all, make_retrieval

from harness import as_mteb_task
from nvembed.errors import DownloadError, InputError
from nvembed.evaluate import mteb as ours
from nvembed.evaluate.outcome import Prompts, TaskOutcome
from nvembed.evaluate.protocol import run_task
from nvembed.evaluate.record import folder_of, read_results
from nvembed.evaluate.settings import TaskSettings, protocol
from nvembed.evaluate.subject import Subject, bm25, plain
from nvembed.evaluate.tasks import find_tasks, load_task
from nvembed.text.prompt import format_prompt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mteb = pytest.importorskip("mteb")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

SUBJECT = Subject(name="fake/words", fingerprint="f0", encode=plain(encode))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("tasks"))


def theirs(task: Any, encoder: Any) -> dict[str, Any]:
    made = as_mteb_task(task)
    result = mteb.evaluate(encoder, made, cache=None, co2_tracker=False, show_progress_bar=False)
    return dict(next(iter(result.task_results[0].scores.values()))[0])


NAMES = ("news", "answers", "alike", "twins", "translated", "topics", "folds", "flat", "sets", "briefs")


@pytest.mark.parametrize("name", NAMES)
def test_mtebs_own_scores(root: Path, name: str) -> None:
    """Every score that both report is the same to 1e-5: mteb rounds some to five digits."""
    task = load_task(find_tasks(root, [name])[0])
    outcome: TaskOutcome = run_task(task, encode, Prompts())
    found = theirs(task, ours.MtebEncoder(SUBJECT, encode, lambda metadata, side: ""))
    assert outcome.scores[outcome.main] == pytest.approx(found["main_score"], abs=1e-5)
    shared = {k for k, v in outcome.scores.items() if isinstance(v, float) and k in found and "std" not in k}
    assert len(shared) >= {"retrieval": 30, "reranking": 30, "clustering": 1}.get(task.kind, 4), shared
    for key in shared - {"ap"}:  # theirs is None where there are more than two classes
        assert outcome.scores[key] == pytest.approx(found[key], abs=1e-5), key


def test_the_scores_mean_something(root: Path) -> None:
    """The fake encoder is far from chance, so that agreement is no agreement on nothing."""
    for name, chance in (("alike", 0.0), ("topics", 0.25), ("flat", 0.1), ("twins", 0.5)):
        outcome = run_task(load_task(find_tasks(root, [name])[0]), encode, Prompts())
        assert outcome.scores[outcome.main] > chance + 0.2, name


def test_skipped_identical_ids(tmp_path: Path) -> None:
    """ArguAna's queries stand in the corpus under their own ids."""
    folder = make_retrieval(tmp_path / "arguana")
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    for i, query in enumerate(queries):
        query["_id"] = f"d{i}"
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    qrels = folder / "qrels" / "test.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "".join(f"d{i}\td{i + 20}\t1\n" for i in range(15)))
    assert not load_task(folder).settings.skip_identical_ids, "a name is no evidence"
    (folder / "task.toml").write_text('mteb = "ArguAna"\n')
    task = load_task(folder)
    assert task.settings.skip_identical_ids
    outcome = run_task(task, encode, Prompts())
    found = theirs(task, ours.MtebEncoder(SUBJECT, encode, lambda metadata, side: ""))
    assert outcome.scores["ndcg_at_10"] == pytest.approx(found["ndcg_at_10"], abs=1e-5)


def test_deprecated_summeval(root: Path) -> None:
    """What MTEB English v1 publishes as SummEval averages coefficients and p-values together."""
    from mteb._evaluators.text.summarization_evaluator import DeprecatedSummarizationEvaluator

    task = load_task(find_tasks(root, ["briefs"])[0])
    made = as_mteb_task(task)
    type(made).evaluator = DeprecatedSummarizationEvaluator
    encoder = ours.MtebEncoder(SUBJECT, encode, lambda metadata, side: "")
    result = mteb.evaluate(encoder, made, cache=None, co2_tracker=False, show_progress_bar=False)
    old = result.task_results[0].scores["test"][0]["cosine_spearman"]
    outcome = run_task(task, encode, Prompts())
    assert outcome.scores["cosine_spearman_with_p"] == pytest.approx(old, abs=1e-6)
    assert outcome.scores["cosine_spearman"] != pytest.approx(old, abs=1e-3)


def test_settings_are_mtebs() -> None:
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    rules = protocol()
    assert rules.retrieval.cutoffs == AbsTaskRetrieval.k_values
    assert rules.retrieval.top_k == max(AbsTaskRetrieval.k_values)
    assert rules.classification.samples_per_label == AbsTaskClassification.samples_per_label
    assert rules.classification.experiments == AbsTaskClassification.n_experiments
    assert rules.classification.folds == AbsTaskClassification.n_splits
    assert rules.classification.max_iterations == AbsTaskClassification.evaluator_model.max_iter
    for name in {*rules.folder.values(), *rules.task}:
        settings, task = rules.task.get(name, TaskSettings()), mteb.get_task(name)
        assert getattr(task, "ignore_identical_ids", False) == settings.skip_identical_ids, name
        per_label = settings.samples_per_label or rules.classification.samples_per_label
        assert getattr(task, "samples_per_label", per_label) == per_label, name


def test_benchmarks_by_name() -> None:
    sizes = {"MTEB(eng, v1)": 56, "MTEB(eng, v2)": 41, "BEIR": 15, "NanoBEIR": 13, "LongEmbed": 6}
    for name, size in sizes.items():
        assert len(ours.find_mteb_tasks([name])) == size, name
    with pytest.raises(InputError, match=r"no task or benchmark 'SciFcat' in mteb: did you mean .*'SciFact'"):
        ours.find_mteb_tasks(["SciFcat"])


def test_mteb_run_is_recorded_and_resumed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def watched(texts: Any, prompt: str) -> np.ndarray:
        calls.append(prompt)
        return encode(texts, prompt)

    subject = Subject("fake/words", "f1", encode=plain(watched), instructions=True)
    made = as_mteb_task(load_task(find_tasks(root, ["news"])[0]))
    told = {"news": "Find the news"}
    assert ours.run_mteb(subject, [made], tmp_path, cache=tmp_path / "c", instructions=told) == ["news"]
    assert set(calls) == {"Instruct: Find the news\nQuery: ", ""}
    result = read_results(folder_of(tmp_path, subject, instructions=told))["news"]
    assert result.items is not None
    assert 100 * result.items.value.mean() == pytest.approx(result.main_score, abs=1e-3)
    assert result.record["conditions"]["prompt"]["query"] == "Instruct: Find the news\nQuery: "
    calls.clear()
    assert ours.run_mteb(subject, [made], tmp_path, cache=tmp_path / "c", instructions=told) == []
    assert calls == []
    with pytest.raises(InputError, match="bm25 has no vectors"):
        ours.run_mteb(bm25(), [made], tmp_path)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(ours, "_mteb", lambda: SimpleNamespace(evaluate=unreachable))
    with pytest.raises(
        DownloadError, match=r"the data of news could not be fetched \(Couldn't reach the hub"
    ):
        ours.run_mteb(subject, [made], tmp_path / "other", instructions=told)


CLAIM = "Given a scientific claim, retrieve documents that support or refute the claim"
DUPLICATE = "Given a question, retrieve questions that are semantically equivalent to the given question"


@pytest.mark.parametrize(
    ("task", "side", "want"),
    [
        ("SciFact", "query", CLAIM),
        ("SciFact", "corpus", ""),
        ("NanoSciFactRetrieval", "query", CLAIM),
        ("QuoraRetrieval", "corpus", DUPLICATE),
        ("STS12", "query", "Retrieve semantically similar text"),
    ],
)
def test_prompts_of_mteb_tasks(task: str, side: str, want: str) -> None:
    metadata = mteb.get_task(task).metadata
    subject = Subject("fake/words", "f2", encode=plain(encode), instructions=True)
    assert ours.prompt_for(subject, metadata, side, {}) == (format_prompt(want), "recipe")
    assert ours.prompt_for(SUBJECT, metadata, side, {}) == ("", "none")


def test_other_tasks_get_the_prompts_of_mtebs_own_loader(capsys: pytest.CaptureFixture[str]) -> None:
    """A task outside the recipe: the prompt in its metadata, else that of its type, as in mteb's loader."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    loader: Any = SimpleNamespace(prompt_priority=AbsEncoder.prompt_priority, prompts_dict=None)
    subject = Subject("fake/words", "f2", encode=plain(encode), instructions=True)
    tasks = ours.find_mteb_tasks(["MTEB(Multilingual, v2)"])
    sources: dict[str, int] = {}
    for task in tasks:
        metadata = task.metadata
        sided = metadata.type in ours.SIDED
        sides: list[tuple[Any, Any]] = [("query", PromptType.query), ("corpus", PromptType.document)]
        for side, prompt_type in sides if sided else [(None, None)]:
            prompt, source = ours.prompt_for(subject, metadata, side, {})
            if source != "recipe":
                assert prompt == format_prompt(AbsEncoder.get_instruction(loader, metadata, prompt_type))
        sources[source] = sources.get(source, 0) + 1
        assert prompt or sided, f"{metadata.name} has no prompt"
    assert sources["mteb task type"] > 50
    note = ours.prompt_note(subject, tasks, {})
    assert f"no instruction for {len(tasks) - sources['recipe']} of {len(tasks)} tasks" in note
    assert f"{sources['mteb task type']} use mteb's prompt for the type of task" in note
    assert ours.prompt_note(SUBJECT, tasks, {}) == ""
