"""``nvembed audit``: does the training data contain what is evaluated on?"""

import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from nvembed.cli.screen import results, say
from nvembed.data.audit import HeldOut, record_of
from nvembed.data.audit import audit as compare
from nvembed.data.example import read_examples
from nvembed.data.read import read_held_out, read_records
from nvembed.data.sources import BlendRecipe
from nvembed.data.tables import Places
from nvembed.errors import InputError
from nvembed.files import atomic_path
from nvembed.recipe import nearest, read_recipe


def audit(
    recipe: Path,
    *,
    root: Path = Path(),
    mirror: Path | None = None,
    sets: list[str] | None = None,
    prepared: Path | None = None,
    out: Path | None = None,
) -> None:
    """Compare the training sets of a recipe with its held-out sets, text by text.

    A held-out record is leaked when a training record holds all its texts, equal or nearly so. Prints one
    line for each two sets that share anything.

    Examples:

        nvembed audit recipes/small --root ../shared/data

        nvembed audit recipes/small --root ../shared/data --prepared data/small --out audit.json

    Parameters
    ----------
    recipe
        A folder with blend.toml.
    root
        The folder below which the blend's local paths lie.
    mirror
        A folder with copies of the hub's data sets, as owner/name: nothing is downloaded then.
    sets
        Only these training sets; given once for each.
    prepared
        Look at what `nvembed mine` made in this folder, instead of the sources.
    out
        Write all findings, with examples, to this JSON file.
    """
    blend = read_recipe(recipe / "blend.toml", BlendRecipe)
    for name in sets or ():
        if name not in blend.sets:
            raise InputError(f"the blend has no set {name!r}: {nearest(name, blend.sets)}")
    places = Places(root=root, mirror=mirror)
    held_out = {name: HeldOut(read_held_out(each, places)) for name, each in blend.held_out.items()}
    findings = []
    for name in sets or blend.sets:
        if prepared is None:
            records = read_records(blend.sets[name], places)
        else:
            records = map(record_of, read_examples(prepared / f"{name}.jsonl"))
        findings += compare({name: records}, held_out)
    table = Table("training set", "held-out set", "records", "leaking", "leaked", "of these equal")
    for found in sorted(findings, key=lambda each: -each.leaking):
        counts = (found.records, found.leaking, found.leaked, found.leaked_exactly)
        table.add_row(found.training, found.held_out, *(f"{count:,}" for count in counts))
    results().print(table)
    leaking = sum(1 for found in findings if found.leaking)
    say(f"{len(findings)} pairs of sets share a text; in {leaking} of them a held-out record is leaked")
    if out is not None:
        with atomic_path(out) as temporary:
            rows = [asdict(found) for found in findings]
            temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
