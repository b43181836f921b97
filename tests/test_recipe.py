"""Recipes: what a reader is told about each kind of fault, and what is taken as it stands."""

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from nvembed.errors import ConfigError
from nvembed.recipe import Recipe, nearest, read_recipe


class Optimizer(Recipe):
    learning_rate: float
    warmup_steps: int = 0


class Source(Recipe):
    name: str
    samples: int


class Sample(Recipe):
    seed: int
    mode: Literal["top", "random"] = "top"
    optimizer: Optimizer
    extra: Optimizer | None = None
    sizes: tuple[int, ...] = ()
    source: tuple[Source, ...] = ()
    by_name: dict[str, Source] = Field(default_factory=dict)


GOOD = """
seed = 3
sizes = [1, 2]
[optimizer]
learning_rate = 1  # a whole number is a fine float
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sample.toml"
    path.write_text(text)
    return path


def fault(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(folder, text), Sample)
    return str(caught.value).replace(f"{folder}/", "")


def test_good_file(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD), Sample)
    assert recipe.sizes == (1, 2)
    assert recipe.optimizer.learning_rate == 1.0
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 4


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    said = fault(tmp_path, GOOD + "lerning_rate = 2.0\n")
    assert said == "sample.toml:6: optimizer.lerning_rate: unknown key; did you mean 'learning_rate'?"
    assert "known: extra, mode" not in fault(tmp_path, "sede = 1\n" + GOOD)
    assert "did you mean 'seed'?" in fault(tmp_path, "sede = 1\n" + GOOD)
    assert "known: by_name, extra, mode" in fault(tmp_path, "zzz = 1\n" + GOOD)


def test_unknown_keys_inside_lists_tables_and_options(tmp_path: Path) -> None:
    text = GOOD + '[[source]]\nname = "a"\nsamples = 1\n[[source]]\nname = "b"\nsample = 1\n'
    assert "sample.toml:11: source.1.sample: unknown key; did you mean 'samples'?" in fault(tmp_path, text)
    assert "sample.toml:9: source.1.samples: expected a value, got none" in fault(tmp_path, text)
    text = GOOD + '[by_name."a b"]\nname = "a"\nsamples = 1\nnam = 1\n'
    assert "sample.toml:9: by_name.a b.nam: unknown key; did you mean 'name'?" in fault(tmp_path, text)
    text = GOOD + "[extra]\nlearning_rate = 1.0\nwarmup = 1\n"
    assert "sample.toml:8: extra.warmup: unknown key; did you mean 'warmup_steps'?" in fault(tmp_path, text)


def test_wrong_values_say_expected_and_got(tmp_path: Path) -> None:
    assert 'sample.toml:2: seed: expected a valid integer, got "3"' in fault(
        tmp_path, GOOD.replace("= 3", '= "3"')
    )
    assert "sample.toml:2: seed: expected a valid integer, got true" in fault(
        tmp_path, GOOD.replace("= 3", "= true")
    )
    assert "expected 'top' or 'random', got \"tip\"" in fault(tmp_path, 'mode = "tip"\n' + GOOD)
    assert "optimizer.learning_rate: expected a finite number, got NaN" in fault(
        tmp_path, GOOD.replace("= 1 ", "= nan ")
    )
    assert "sample.toml:1: optimizer: expected a value, got none" in fault(tmp_path, "seed = 1\n")


def test_every_fault_is_said_at_once(tmp_path: Path) -> None:
    said = fault(tmp_path, 'seed = 1.5\nmode = "x"\n[optimizer]\n')
    assert len(said.splitlines()) == 3


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    assert "expected a TOML file" in fault(tmp_path, "seed = \n")
    with pytest.raises(ConfigError, match=r"expected a recipe file, got No such file"):
        read_recipe(tmp_path / "absent.toml", Sample)
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_recipe(tmp_path / "bytes.toml", Sample)


@pytest.mark.parametrize(
    "text",
    [
        "a." * 20_000 + "a = 1",
        "[" + "a." * 20_000 + "a]",
        "seed = " + "[" * 20_000,
        "seed = " + "[" * 400 + "]" * 400,
        "seed = " + "1" * 5_000,
        "#" * (2 << 20),
    ],
    ids=["key", "section", "open", "deep", "digits", "long"],
)
def test_recipes_that_would_take_long_or_break_the_parser(tmp_path: Path, text: str) -> None:
    assert len(fault(tmp_path, text)) < 500


def test_nearest() -> None:
    assert nearest("scifact", ["SciFact", "ArguAna"]) == "did you mean 'SciFact'?"
    assert nearest("zzz", [f"name{i:02d}" for i in range(20)]).endswith("... (20 in all)")
    assert json.dumps(nearest("a", [])) == '"known: "'
