"""What mining did: counts, histograms of scores, and examples to read."""

from typing import Any

import numpy as np

BINS = 20


def summarize(
    positive_Q: np.ndarray,
    best_Q: np.ndarray,
    negative: np.ndarray,
    *,
    lengths: np.ndarray,
    full: int,
    shown: list[Any],
) -> dict[str, Any]:
    """Return the report of a mined set.

    Args:
        positive_Q: each query's lowest score of a known positive.
        best_Q: each query's best score of any other passage; -inf without one.
        negative: the scores of the mined negatives.
        lengths: how many negatives each query got.
        full: how many it should have got.
        shown: queries with their positive and negatives.
    """
    everything = np.concatenate([positive_Q, negative])
    low, high = (float(everything.min()), float(everything.max())) if len(everything) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return {
        "queries": len(positive_Q),
        "full": int((lengths >= full).sum()),
        "short": int(((lengths > 0) & (lengths < full)).sum()),
        "without": int((lengths == 0).sum()),
        "positive_first": int((positive_Q > best_Q).sum()),
        "edges": [round(float(edge), 4) for edge in edges],
        "positive_scores": np.histogram(positive_Q, edges)[0].tolist(),
        "negative_scores": np.histogram(negative, edges)[0].tolist(),
        "shown": shown,
    }


def render_report(name: str, report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    queries = max(report["queries"], 1)
    lines = [
        f"# Mined: {name}",
        "",
        f"- {report['queries']:,} queries: {report['full']:,} with all negatives, "
        f"{report['short']:,} with fewer, {report['without']:,} with none",
        f"- the teacher ranks the positives first for {report['positive_first'] / queries:.1%} of them",
        f"- {report['excluded']:,} candidates left out as too close to a positive; "
        f"{report['filled']:,} random passages filled in",
        "",
        "| score from | positives | | negatives | |",
        "|---:|---:|:---|---:|:---|",
    ]
    tallest = max([*report["positive_scores"], *report["negative_scores"], 1])
    for edge, *counts in zip(
        report["edges"], report["positive_scores"], report["negative_scores"], strict=False
    ):
        cells = [f"{count:,} | {'█' * round(20 * count / tallest)}" for count in counts]
        lines.append(f"| {edge:.3f} | {' | '.join(cells)} |")
    for item in report["shown"]:
        lines += ["", f"## {_short(item['query'])}", ""]
        lines.append(f"- **{item['positive']['score']:.3f}** {_short(item['positive']['text'])}")
        lines += [f"- {passage['score']:.3f} {_short(passage['text'])}" for passage in item["negatives"]]
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 240 else text[:237] + "..."
