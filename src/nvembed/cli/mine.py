"""``nvembed mine``: training files from a recipe, with mined hard negatives."""

from collections.abc import Sequence
from pathlib import Path

from nvembed.cli.options import Dtype
from nvembed.cli.screen import say
from nvembed.cli.teachers import fingerprint, open_teacher
from nvembed.data.mine import Method, Teacher
from nvembed.data.prepare import MiningRecipe, prepare
from nvembed.data.rows import Numbered
from nvembed.data.sources import BlendRecipe, Source
from nvembed.data.tables import Places
from nvembed.data.teacher import Encode, VectorBlocks, bm25_teacher, dense_teacher
from nvembed.errors import InputError
from nvembed.files import locked
from nvembed.recipe import nearest, read_recipe
from nvembed.text.bm25 import Bm25
from nvembed.text.prompt import format_prompt, instruction_for, training_instructions


def mine(
    recipe: Path,
    *,
    out: Path,
    root: Path = Path(),
    mirror: Path | None = None,
    sets: list[str] | None = None,
    stage: int | None = None,
    teacher: str | None = None,
    method: Method | None = None,
    threshold: float | None = None,
    negatives: int | None = None,
    instruct: bool | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    max_tokens: int = 512,
) -> None:
    """Make training files: choose examples, leave out leaks, mine hard negatives.

    Writes OUT/NAME.jsonl for every set, with a report for the eye (NAME.report.md). A set that is there is
    left as it is, one that was begun goes on; nothing is overwritten.

    Examples:

        nvembed mine recipes/small --out data/small --root ../shared/data

        nvembed mine recipes/nv_embed_v2 --out data/7b --sets SciFact --sets FiQA2018

        nvembed mine recipes/small --out data/again --root ../shared/data --teacher models/stage1 --instruct

    Parameters
    ----------
    recipe
        A folder with blend.toml and mining.toml.
    out
        The folder for what is made.
    root
        The folder below which the blend's local paths lie.
    mirror
        A folder with copies of the hub's data sets, as owner/name: nothing is downloaded then.
    sets
        Only these sets; given once for each. All of them unless given.
    stage
        Only the sets of this stage.
    teacher
        bm25, a model of ours (folder or hub id), or sentence-transformers:MODEL (a folder, a hub id, or a
        folder inside an installed package); the recipe's unless given.
    method
        naive, shifted, absolute, margin or percentage; the recipe's unless given.
    threshold
        The method's N, T, m or alpha; the recipe's unless given.
    negatives
        Hard negatives of a query; the recipe's unless given.
    instruct
        Whether the teacher is given each task's instruction, as a model of ours should be; the recipe's
        unless given.
    device
        Where the teacher runs; the best there is unless given.
    dtype
        What the teacher computes in; bfloat16 on CUDA and float32 on CPU unless given.
    max_tokens
        Texts are cut to this length for the teacher.
    """
    blend = read_recipe(recipe / "blend.toml", BlendRecipe)
    changes = {"method": method, "threshold": threshold, "negatives": negatives}
    mining = read_recipe(recipe / "mining.toml", MiningRecipe)
    rule = mining.rule.model_copy(update={key: value for key, value in changes.items() if value is not None})
    instructed = mining.instruct if instruct is None else instruct
    mining = mining.model_copy(
        update={"rule": rule, "teacher": teacher or mining.teacher, "instruct": instructed}
    )
    loaded = _Teachers(mining, device=device, dtype=dtype, max_tokens=max_tokens)
    name = fingerprint(mining.teacher)
    if mining.teacher != "bm25":
        name += f", {max_tokens:,} tokens"
    with locked(out):
        prepare(
            blend,
            mining,
            _names(blend, sets, stage),
            Places(root=root, mirror=mirror),
            out=out,
            make_teacher=loaded.make,
            teacher_name=name,
            say=say,
        )


def _names(blend: BlendRecipe, sets: Sequence[str] | None, stage: int | None) -> list[str]:
    known = blend.sets if stage is None else blend.of_stage(stage)
    for name in sets or ():
        if name not in known:
            raise InputError(f"the blend has no set {name!r}: {nearest(name, known)}")
    return list(sets or known)


class _Teachers:
    """Makes the teacher of each set; the model is loaded once, when the first set needs it."""

    def __init__(
        self, mining: MiningRecipe, *, device: str | None, dtype: Dtype | None, max_tokens: int
    ) -> None:
        self._mining, self._device, self._dtype, self._max_tokens = mining, device, dtype, max_tokens
        self._loaded: tuple[Encode, str] | None = None

    def make(self, passages: Numbered[str], source: Source, folder: Path) -> Teacher:
        """Return the teacher of one set; ``folder`` is where its vectors of the passages go."""
        depth = min(self._mining.rule.depth, len(passages))
        if self._mining.teacher == "bm25":
            return bm25_teacher(Bm25(list(passages)), depth=depth)
        query_prompt = passage_prompt = ""
        if self._mining.instruct:
            query_prompt = format_prompt(training_instructions(source.task)[0])
            if source.form == "scores":  # pairs of equals: both sides carry the instruction, as in training
                passage_prompt = format_prompt(instruction_for(source.task, "corpus"))
        if self._loaded is None:
            self._loaded = open_teacher(
                self._mining.teacher, device=self._device, dtype=self._dtype, max_tokens=self._max_tokens
            )
        encode, name = self._loaded
        blocks = VectorBlocks(folder, passages, encode, prompt=passage_prompt, fingerprint=name)
        return dense_teacher(encode, query_prompt, blocks, depth=depth)
