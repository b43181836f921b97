"""How good are models on the development data, and what do they cost? One table, one chart.

    python benchmarks/development.py bm25 random all-MiniLM-L6-v2=FOLDER MODEL_FOLDER \\
        --data DATA --work evaluation --out benchmarks/results

Finished tasks are not repeated; ``--tasks`` takes a part. Tasks that a model lacks are empty in the table.
"""

import argparse
from pathlib import Path

from nvembed.cli.compare import compare
from nvembed.cli.evaluate import evaluate
from nvembed.evaluate.record import read_results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="all", help="'none' only reports what is there")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.tasks != "none":
        evaluate(*args.models, tasks=[args.tasks], data=args.data, out=args.work)
    folders = sorted(path.parent for path in args.work.glob("*/*/model_meta.json"))
    compare(*folders, out=args.out / "development")
    some = next(iter(read_results(folders[0]).values())).record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in some["packages"].items())
    table = args.out / "development" / "compare.md"
    command = "`python benchmarks/development.py MODELS --data DATA --work evaluation --out RESULTS`"
    head = f"# Models on the development data\n\n{command}\n\nEmpty: not measured.\n\n"
    table.write_text(f"{head}{some['processor']}, {some['cores']} cores; {packages}\n\n{table.read_text()}")


if __name__ == "__main__":
    main()
