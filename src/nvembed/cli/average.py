"""``nvembed average``: average states of training into one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Share = Annotated[float, Parameter(validator=Number(gt=0))]


def average(*states: Path, out: Path, share: tuple[Share, ...] = ()) -> None:
    """Average states of training into one.

    The mean of two stages often keeps the strengths of both. The result is a state, for "nvembed merge" and
    "nvembed export". It is exact: the rank of its adapter is the sum of the ranks.

    Examples:

        nvembed average runs/stage1/best runs/stage2/best --out runs/mean

        nvembed average a/best b/best --share 2 --share 1 --out runs/mean

    Parameters
    ----------
    states
        Two or more states of training runs on the same checkpoint.
    out
        Folder for the new state; it must not exist.
    share
        Share of each state in the mean, in the order of the states. Default: equal shares.
    """
    from nvembed.weights.average import average as write

    mean = write(states, out, shares=share or None)
    rank = f", adapter of rank {mean.rank}" if mean.rank else ""
    print(f"{out}: the mean of {len(states)} states{rank}")
