"""``nvembed mine``: training files from a recipe, with mined hard negatives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.cli.models import Loading, model_content, open_model
from nvembed.cli.options import Compute, Count
from nvembed.cli.screen import say
from nvembed.data.prepare import MiningRecipe, prepare
from nvembed.data.rows import Numbered
from nvembed.data.rule import Method, Teacher, check_rule
from nvembed.data.sources import BlendRecipe, TrainingSource
from nvembed.data.tables import Places
from nvembed.data.teacher import VectorBlocks, bm25_teacher, dense_teacher
from nvembed.errors import InputError
from nvembed.evaluate.subject import Subject
from nvembed.files import locked
from nvembed.recipe import read_recipe
from nvembed.text.bm25 import Bm25
from nvembed.vectors.store import VectorSettings


def mine(
    recipe: Path,
    /,
    *,
    out: Path,
    root: Path = Path(),
    mirror: Path | None = None,
    sets: list[str] | None = None,
    stage: int | None = None,
    teacher: str | None = None,
    method: Method | None = None,
    threshold: float | None = None,
    negatives: Count | None = None,
    instruct: bool | None = None,
    max_tokens: Count = 512,
    compute: Compute = Compute(),
) -> None:
    """Make training files: choose examples, leave out leaks, mine hard negatives.

    Writes OUT/NAME.jsonl and a report, OUT/NAME.report.md, for every set. Run the same command again to
    resume: finished sets are kept.

    Examples:

        nvembed mine recipes/tiny --out data/tiny

        nvembed mine recipes/nv_embed_v2 --out data/7b --sets SciFact

        nvembed mine recipes/tiny --out data/stage2 --teacher runs/teacher --instruct

    Parameters
    ----------
    recipe
        Folder with blend.toml and mining.toml.
    out
        Folder for the training files.
    root
        Folder that the local paths of the blend start from.
    mirror
        Folder with copies of the hub's data sets, as owner/name, so that nothing is downloaded.
    sets
        Only this set. May be repeated. Default: all.
    stage
        Only the sets of this stage.
    teacher
        bm25, or a model: a folder, a hub id, or package/folder. Default: the recipe's.
    method
        naive, shifted, absolute, margin or percentage. Default: the recipe's.
    threshold
        The method's N, T, m or alpha. Default: the recipe's.
    negatives
        Most hard negatives of a query. Default: the recipe's.
    instruct
        Give the teacher the instruction of each task. Default: the recipe's.
    max_tokens
        Most tokens that the teacher reads of a text; longer texts are cut.
    """
    blend = read_recipe(recipe / "blend.toml", BlendRecipe)
    mining = _changed(
        read_recipe(recipe / "mining.toml", MiningRecipe),
        {"method": method, "threshold": threshold, "negatives": negatives},
        {"teacher": teacher, "instruct": instruct},
    )
    check_rule(mining.rule)
    sources = blend.choose(sets, stage)
    name = model_content(mining.teacher)
    if mining.teacher != "bm25":
        name += f", {max_tokens:,} tokens"
    with locked(out):
        prepare(
            blend,
            mining,
            sources,
            Places(root=root, mirror=mirror),
            out=out,
            make_teacher=_Teachers(mining, compute, max_tokens).make,
            teacher_name=name,
            say=say,
        )


def _changed(mining: MiningRecipe, rule: dict[str, Any], others: dict[str, Any]) -> MiningRecipe:
    """Return the recipe, changed by the options that are not None."""
    rule = {key: value for key, value in rule.items() if value is not None}
    others = {key: value for key, value in others.items() if value is not None}
    return mining.model_copy(update={"rule": mining.rule.model_copy(update=rule), **others})


class _Teachers:
    """Makes the teacher of each set; the model is loaded once, when the first set needs it."""

    def __init__(self, mining: MiningRecipe, compute: Compute, max_tokens: int) -> None:
        self._mining, self._compute, self._max_tokens = mining, compute, max_tokens
        self._model: Subject | None = None

    def make(self, passages: Numbered[str], source: TrainingSource, folder: Path) -> Teacher:
        """Return the teacher of one set; its vectors of the passages are kept in ``folder``."""
        depth = min(self._mining.rule.depth, len(passages))
        if self._mining.teacher == "bm25":
            return bm25_teacher(Bm25(list(passages)), depth=depth)
        query_prompt, passage_prompt = source.prompts() if self._mining.instruct else ("", "")
        if self._model is None:
            loading = Loading(self._max_tokens, self._compute.device, self._compute.dtype)
            self._model = open_model(self._mining.teacher, loading)
        model = self._model
        if model.encode is None:
            raise InputError(
                f"{model.name} has no vectors: expected bm25 or an embedding model as the teacher"
            )
        embed = model.encode
        settings = VectorSettings(
            model.content or model.fingerprint, passage_prompt, model.max_tokens or 0, model.precision
        )

        def encode(texts: Sequence[str], prompt: str) -> np.ndarray:
            return embed(texts, prompt).vectors

        return dense_teacher(
            encode, query_prompt, VectorBlocks(folder, passages, encode, settings), depth=depth
        )
