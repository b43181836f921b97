"""``nvembed average``: states of training to one."""

from pathlib import Path


def average(*states: Path, out: Path, share: list[float] | None = None) -> None:
    """Average states of training into one.

    The result is a state like any other, for nvembed merge and export. The mean of two stages often keeps
    what each is better at. Adapters' ranks add up, so that the mean of the weights is exact.

    Examples:

        nvembed average runs/stage1/best runs/stage2/best --out runs/average

    Parameters
    ----------
    states
        Two or more states of training runs on the same checkpoint.
    out
        The new state's folder; it must not exist.
    share
        The share of a state in the mean, in their order; the same for all unless given. Once per state.
    """
    from nvembed.weights.average import average as write

    made = write(states, out, shares=share)
    rank = f", adapter of rank {made.rank}" if made.rank else ""
    print(f"{out}: the mean of {len(states)} states{rank}")
