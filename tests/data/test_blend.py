"""The stream of batches and their masks, against counts and a slow oracle; the way from a recipe to files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed.cli.leaks import leaks
from nvembed.cli.main import main
from nvembed.cli.mine import mine
from nvembed.data.blend import Blend, draw
from nvembed.data.collate import collate
from nvembed.data.example import Example, open_examples, prompts, to_row
from nvembed.data.prepare import choose
from nvembed.data.rows import write_rows
from nvembed.errors import ConfigError, DataError, InputError, OutputError
from nvembed.files import locked


@settings(max_examples=60, deadline=None)
@given(
    sets=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_draw_counts(sets: list[tuple[int, int]], seed: int, epoch: int) -> None:
    sizes, samples = [size for size, _ in sets], [count for _, count in sets]
    order = draw(sizes, samples, seed=seed, epoch=epoch)
    assert np.array_equal(order, draw(sizes, samples, seed=seed, epoch=epoch))
    for number, (size, count) in enumerate(sets):
        rows = Counter(order[order[:, 0] == number, 1].tolist())
        assert sum(rows.values()) == count
        assert set(rows) <= set(range(size))
        times = [rows[row] for row in range(size)]
        assert max(times) - min(times) <= 1
        turns = [tuple(turn) for turn in order[order[:, 0] == number, 1:].tolist()]
        assert len(set(turns)) == len(turns)  # a row that comes again has another turn


def test_draw_in_runs_of_one_set() -> None:
    order = draw([100, 40, 3], [90, 50, 2], seed=0, epoch=0, group=8)
    mixed = draw([100, 40, 3], [90, 50, 2], seed=0, epoch=0)
    assert sorted(order[:, :2].tolist()) != order[:, :2].tolist()
    assert np.array_equal(np.bincount(order[:, 0]), [90, 50, 2])
    assert len({tuple(row) for row in order.tolist()}) == len({tuple(row) for row in mixed.tolist()}) == 142
    changes = np.flatnonzero(np.diff(order[:, 0])).size
    assert changes < 12 + 7 + 1, "runs of 8 or more, but for the last of each set"
    assert not np.array_equal(order, draw([100, 40, 3], [90, 50, 2], seed=0, epoch=1, group=8))


def test_draw_mixes_the_sets() -> None:
    order = draw([1000, 1000], [500, 500], seed=0, epoch=0)
    runs = 1 + int((np.diff(order[:, 0]) != 0).sum())
    assert 430 < runs < 570
    assert not np.array_equal(order, draw([1000, 1000], [500, 500], seed=0, epoch=1))
    with pytest.raises(InputError, match="expected sets of 1 row or more"):
        draw([0], [1], seed=0, epoch=0)


def blend(folder: Path, seed: int = 1) -> Blend:
    for name, count in (("a", 7), ("b", 3)):
        rows = (
            to_row(Example(f"{name}{n}", ("p", "r"), "NQ", positive_ids=("P", "R"))) for n in range(count)
        )
        write_rows(folder / f"{name}.jsonl", rows)
    files = {name: folder / f"{name}.jsonl" for name in "ab"}
    return Blend(files, {"a": 4, "b": 6}, seed=seed)


def test_blend_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    stream = blend(tmp_path)
    assert len(stream) == 10
    steps = [stream.batch(step, 4) for step in range(10)]
    resumed = blend(tmp_path)
    assert resumed.batch(7, 4) == steps[7]  # without having seen the steps before
    assert resumed.batch(2, 4) == steps[2]
    assert blend(tmp_path, seed=2).batch(0, 10) != stream.batch(0, 10)
    everything = [example for batch in steps for example in batch]
    for epoch in range(4):
        names = Counter(example.query[0] for example in everything[epoch * 10 : epoch * 10 + 10])
        assert names == {"a": 4, "b": 6}
    # b's rows come twice an epoch, each time with another positive first, ids in step
    firsts = [e.positives[0] for e in everything[:10] if e.query == "b0"]
    assert sorted(firsts) == ["p", "r"]
    assert all(e.positive_ids[0] == e.positives[0].upper() for e in everything)


def test_blend_says_what_it_follows_from_and_reads_every_line_it_may_draw(tmp_path: Path) -> None:
    stream = blend(tmp_path)
    assert stream.identity == blend(tmp_path).identity
    assert stream.check() == 10
    path = tmp_path / "b.jsonl"
    path.write_text(path.read_text().replace("b0", "b9"))  # as many rows, of as many bytes
    files = {name: tmp_path / f"{name}.jsonl" for name in "ab"}
    for changed in (Blend(files, {"a": 4, "b": 6}, seed=1), Blend(files, {"a": 4, "b": 5}, seed=1)):
        differs = [key for key, value in stream.identity.items() if changed.identity[key] != value]
        assert differs == ["set b"]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match=r"b\.jsonl:4: not JSON .*b''"):
        Blend(files, {"a": 4, "b": 6}, seed=1).check()


def test_blend_without_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file for a, b"):
        Blend({"b": tmp_path / "b.jsonl"}, {"a": 1, "b": 1}, seed=0)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(DataError, match=r"b\.jsonl: expected examples of b"):
        Blend({"b": tmp_path / "b.jsonl"}, {"b": 1}, seed=0)


TEXTS = st.sampled_from(["a", "b", "c", "d", "A "])
EXAMPLES = st.lists(
    st.builds(
        lambda query, positives, wrong, task, ids: Example(
            query,
            tuple(positives),
            task,
            tuple(
                text for text in wrong if text.strip().lower() not in {p.strip().lower() for p in positives}
            ),
            positive_ids=tuple(f"{p.strip().lower()}{ids}" for p in positives) if ids else (),
        ),
        TEXTS,
        st.lists(TEXTS, min_size=1, max_size=2, unique=True),
        st.lists(st.sampled_from(["x", "y", "b", "c"]), max_size=3, unique=True),
        st.sampled_from(["NQ", "STS12"]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(examples=EXAMPLES, negatives=st.integers(0, 3), in_batch=st.booleans(), alone=st.booleans())
def test_mask_against_a_double_loop(
    examples: list[Example], negatives: int, in_batch: bool, alone: bool
) -> None:
    batch = collate(examples, negatives=negatives, in_batch=in_batch, alone=["STS12"] if alone else [])

    def same(a: str, b: str) -> bool:
        return a.strip().lower() == b.strip().lower()

    columns = []  # (owner, text, id)
    for row, e in enumerate(examples):
        assert batch.positive[row] == len(columns)
        columns.append((row, e.positives[0], e.positive_ids[0] if e.positive_ids else None))
        columns += [(row, text, None) for text in e.hard_negatives[:negatives]]
    assert batch.passages == tuple(text for _, text, _ in columns)
    for row, e in enumerate(examples):
        for column, (owner, text, name) in enumerate(columns):
            right = any(
                any(same(text, positive) for positive in other.positives) or name in other.positive_ids
                for other in examples
                if same(other.query, e.query)
            ) or same(text, e.query)
            shared = in_batch and not (alone and e.task == "STS12")
            assert batch.allowed[row, column] == (owner == row or (shared and not right))


def test_prompts_of_a_batch() -> None:
    batch = collate(
        [Example("q", ("p",), "NQ", ("n",)), Example("s", ("t",), "STS12", both_sides=True)],
        negatives=7,
        in_batch=True,
    )
    assert [bool(prompt) for prompt in batch.query_prompts] == [True, True]
    assert [bool(prompt) for prompt in batch.passage_prompts] == [False, False, True]
    with pytest.raises(InputError, match="expected a batch of one example or more"):
        collate([], negatives=7, in_batch=True)


def test_choose_is_a_draw_that_order_does_not_change() -> None:
    examples = [Example(f"q{n}", ("p",), "NQ") for n in range(200)]
    few = choose(examples, 50, seed=1)
    assert len(set(few)) == 50
    assert choose(examples[::-1] + examples, 50, seed=1) == few
    assert set(few) < set(choose(examples, 60, seed=1))
    assert choose(examples, 50, seed=2) != few
    assert len(choose(examples, 999, seed=1)) == 200
    numbers = [int(example.query[1:]) for example in few]
    assert 70 < np.mean(numbers) < 130


RECIPE = """
seed = 1
[held_out.test]
path = "test.jsonl"
[sets.faq]
task = "NQ"
stages = [1]
samples = 100
form = "pairs"
licence = "ours"
path = "faq.jsonl"
[sets.mood]
task = "EmotionClassification"
stages = [2]
samples = 100
form = "example"
licence = "ours"
path = "mood.jsonl"
mine = false
"""
MINING = """
teacher = "bm25"
instruct = false
[rule]
method = "percentage"
threshold = 0.95
negatives = 3
depth = 10
top_up = true
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "blend.toml").write_text(RECIPE)
    (tmp_path / "mining.toml").write_text(MINING)
    faq = [
        {"query": f"what is number {n}", "positive": f"number {n} is the successor of {n - 1}"}
        for n in range(20)
    ]
    mood = [{"text": f"feeling {n} {mood}", "label": mood} for n in range(5) for mood in ("joy", "anger")]
    for name, rows in {"faq": faq, "mood": mood, "test": [{"text": "What is number 7?"}]}.items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def test_mine_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = project / "out"
    mine(project, out=out, root=project)
    assert "faq: 20 examples, 1 left out as leaks, 19 chosen" in capsys.readouterr().err
    faq = list(open_examples(out / "faq.jsonl"))
    assert len(faq) == 19
    assert all(len(example.hard_negatives) == 3 for example in faq)
    assert "what is number 7" not in {example.query for example in faq}
    assert len(list(open_examples(out / "mood.jsonl"))) == 10
    made = sorted(path.name for path in out.iterdir())
    assert made == [
        ".lock",
        *("faq.digest", "faq.jsonl", "faq.report.json", "faq.report.md", "faq.settings.json"),
        *("mood.digest", "mood.jsonl", "mood.settings.json"),
    ]
    stamp = (out / "faq.jsonl").stat().st_mtime_ns
    mine(project, out=out, root=project)
    assert "faq: finished before" in capsys.readouterr().err
    assert (out / "faq.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match=r"faq\.settings\.json is .* another mining\.rule\.negatives"):
        mine(project, out=out, root=project, negatives=2)
    write_rows(project / "test.jsonl", [{"text": "What is number 9?"}])
    with pytest.raises(OutputError, match=r"faq\.settings\.json is .* another files\..*test\.jsonl"):
        mine(project, out=out, root=project)
    with locked(out), pytest.raises(OutputError, match="is being written by another job"):
        mine(project, out=out, root=project)
    with pytest.raises(InputError, match="the blend has no set 'fag': did you mean 'faq'"):
        mine(project, out=out, root=project, sets=["fag"])
    mine(project, out=project / "two", root=project, stage=2)
    assert [path.name for path in (project / "two").glob("*.jsonl")] == ["mood.jsonl"]


def test_a_command_that_can_do_nothing_is_refused_before_it_writes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project / "out"
    with pytest.raises(InputError, match="no set of stage 7; its stages: 1, 2"):
        mine(project, out=out, root=project, stage=7)
    for threshold in (2.0, float("nan")):
        with pytest.raises(InputError, match="threshold of percentage: expected 0 to 1"):
            mine(project, out=out, root=project, threshold=threshold)
    assert not out.exists()
    for option in ("--negatives=-1", "--negatives=0", "--max-tokens=-3"):
        with pytest.raises(SystemExit):
            main(["mine", str(project), "--out", str(out), "--root", str(project), option])
        assert option.split("=")[0] in capsys.readouterr().err
    assert not out.exists()


def test_what_a_killed_run_left_is_removed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = project / "out"
    mine(project, out=out, root=project)
    files = {path.name for path in out.iterdir()}
    (out / "faq.work" / "vectors").mkdir(parents=True)
    (out / "faq.chosen.jsonl").write_text("{}")
    mine(project, out=out, root=project)
    assert {path.name for path in out.iterdir()} == files
    (out / "faq.jsonl").write_text((out / "faq.jsonl").read_text().replace("successor", "successir", 1))
    with pytest.raises(OutputError, match="not as it was written"):
        mine(project, out=out, root=project)


OWN = """
seed = 1
[sets.helpdesk]
form = "pairs"
path = "faq.jsonl"
instruction = "Given a question to the help desk, retrieve its answer"
"""


def test_a_task_of_ones_own(project: Path) -> None:
    """Only form, path and the instruction; the rest has defaults."""
    (project / "blend.toml").write_text(OWN)
    for stage in (1, 2):
        mine(project, out=project / "out", root=project, stage=stage)
    (example, *rest) = open_examples(project / "out" / "helpdesk.jsonl")
    assert len(rest) == 19
    query = "Instruct: Given a question to the help desk, retrieve its answer\nQuery: "
    assert prompts(example) == (query, "")
    assert collate([example], negatives=1, in_batch=True).query_prompts == (query,)
    both = OWN + 'passage_instruction = "Represent the answer"\n'
    (project / "blend.toml").write_text(both)
    with pytest.raises(OutputError, match=r"another source\.passage_instruction"):
        mine(project, out=project / "out", root=project)
    mine(project, out=project / "both", root=project)
    example = open_examples(project / "both" / "helpdesk.jsonl")[0]
    assert prompts(example) == (query, "Instruct: Represent the answer\nQuery: ")
    (project / "blend.toml").write_text(OWN.replace("instruction =", "# "))
    with pytest.raises(ConfigError, match=r'helpdesk.*instruction = "..."'):
        mine(project, out=project / "none", root=project)
    (project / "blend.toml").write_text(OWN.replace("Given a", "Given\\na"))
    with pytest.raises(ConfigError, match="one line"):
        mine(project, out=project / "none", root=project)


def test_a_set_that_leaks_whole_is_an_error(project: Path) -> None:
    write_rows(project / "faq.jsonl", [{"query": "what is number 7", "positive": "p"}])
    with pytest.raises(DataError, match="faq: 1 examples read, all of them in a held-out set"):
        mine(project, out=project / "out", root=project)
    write_rows(project / "faq.jsonl", [{"query": "q", "positive": " "}])
    with pytest.raises(DataError, match="faq: the source has no example"):
        mine(project, out=project / "out", root=project)


def test_unlabelled_texts_and_leaks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A held-out text gives no passages, though none of its parts is the held-out record."""
    texts = [
        " ".join(" ".join(f"{name}{n * 7 + word}" for word in range(7)).capitalize() + "." for n in range(30))
        for name in ("red", "blue")
    ]
    write_rows(project / "faq.jsonl", [{"text": text} for text in texts])
    write_rows(project / "test.jsonl", [{"text": texts[1].upper()}])
    changed = RECIPE.replace('form = "pairs"', 'form = "text"\nmine = false')
    (project / "blend.toml").write_text(changed)
    mine(project, out=project / "out", root=project, stage=1)
    assert "faq: 2 examples, 1 left out as leaks, 2 chosen" in capsys.readouterr().err
    found = list(open_examples(project / "out" / "faq.jsonl"))
    assert {example.query[:3] for example in found} == {"Red"}
    capsys.readouterr()
    assert leaks(project, root=project, json=True) == 3
    (line,) = [each for each in json.loads(capsys.readouterr().out)["overlaps"] if each["leaking"]]
    assert (line["records"], line["leaking"]) == (2, 1)


def test_leaks_of_a_recipe(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaks(project, root=project) == 3
    output = capsys.readouterr()
    assert "faq" in output.out
    assert "1 pairs leak" in output.err
    assert leaks(project, root=project, json=True) == 3
    (overlap,) = [each for each in json.loads(capsys.readouterr().out)["overlaps"] if each["leaking"]]
    assert (overlap["records"], overlap["leaking"], overlap["leaked_exactly"]) == (20, 1, 1)
    mine(project, out=project / "out", root=project)
    assert leaks(project / "out", against=[project], root=project) == 0


def test_data_that_were_refused_can_be_corrected(project: Path) -> None:
    out = project / "out"
    whole = (project / "faq.jsonl").read_text()
    (project / "faq.jsonl").write_text(whole + '{"query": null, "positive": "nothing"}\n')
    with pytest.raises(DataError, match=r"faq\.jsonl:21: query"):
        mine(project, out=out, root=project, sets=["faq"])
    (project / "faq.jsonl").write_text(whole)
    mine(project, out=out, root=project, sets=["faq"])
    assert len(list(open_examples(out / "faq.jsonl"))) == 19


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_a_held_out_set_without_a_text_is_refused(project: Path, texts: list[str]) -> None:
    write_rows(project / "test.jsonl", ({"text": text} for text in texts))
    with pytest.raises(DataError, match=r"test\.jsonl"):
        mine(project, out=project / "out", root=project, sets=["faq"])


@pytest.mark.parametrize("name", ["", " ", "..", "../x", "a/b", "a\\nb", "x" * 300, "faq.chosen", "a:b"])
def test_names_of_sets_are_names_of_files(project: Path, name: str) -> None:
    recipe = project / "blend.toml"
    recipe.write_text(recipe.read_text().replace("[sets.mood]", f'[sets."{name}"]'))
    with pytest.raises(ConfigError, match="names of files"):
        mine(project, out=project / "out", root=project)
    assert not (project / "out").exists()
