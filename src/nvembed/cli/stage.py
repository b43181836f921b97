"""A stage's recipe with the changes of the command line, and its training files."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nvembed.errors import ConfigError, InputError
from nvembed.files import fault_text
from nvembed.recipe import nearest, read_recipe

if TYPE_CHECKING:
    from nvembed.train.recipe import StageRecipe


def changed(stage: "StageRecipe", changes: list[str]) -> "StageRecipe":
    """Return the recipe with ``section.key=value`` changes; values are TOML, or plain words."""
    table = stage.model_dump(mode="json")
    for change in changes:
        path, _, text = change.partition("=")
        *sections, key = path.strip().split(".")
        section: Any = table
        for name in sections:
            if text and isinstance(section, dict) and section.get(name, ...) is None:
                raise ConfigError(
                    f"--set {change!r}: the recipe has no [{name}]: add the section to its file"
                )
            section = section.get(name) if isinstance(section, dict) else None
        if not text or not sections or not isinstance(section, dict):
            raise InputError(f"--set {change!r}: expected section.key=value, such as loss.temperature=0.05")
        if key not in section:
            place = ".".join(sections)
            raise ConfigError(f"--set {change!r}: no key {key!r} in [{place}]; {nearest(key, section)}")
        try:
            section[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            section[key] = text.strip()
    try:
        return type(stage).model_validate(table, strict=False)
    except ValidationError as error:
        raise ConfigError("--set: " + "; ".join(map(fault_text, error.errors()))) from error


def set_files(stage: "StageRecipe", recipe: Path, data: Path) -> dict[str, Path]:
    """Return the training file of each set of a stage."""
    from nvembed.data.sources import BlendRecipe

    blend = read_recipe(recipe.parent / stage.blend, BlendRecipe)
    return {name: data / f"{name}.jsonl" for name in blend.of_stage(stage.stage)}
