"""Compare runs: python scripts/compare_runs.py RUN RUN ... [--group]

Prints what differs in their settings and what they came to, and draws their curves over tokens and
over seconds of training. A RUN is a run's folder, or one that holds several, as a sweep's.
"""

import argparse
from pathlib import Path

from litmegalodon.utils import errors
from litmegalodon.utils.printing import say, short_path

OUT = Path(__file__).parents[1] / "logs" / "comparison.png"


def main() -> None:
    """Print the table and write table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run or of a sweep")
    parser.add_argument(
        "--group",
        nargs="*",
        metavar="SETTING",
        help="join runs that differ in these settings only (default: seed): mean and spread",
    )
    parser.add_argument("--metric", default="val/bpb", help="what to draw, as val/loss")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture; a .csv goes beside it")
    asked = parser.parse_args()

    with errors.one_line():
        from litmegalodon.sweeps.compared import find, grouped

        repeated = [] if asked.group is None else asked.group or ["seed"]
        if asked.out.suffix != ".png":
            raise ValueError(f"--out={asked.out}: must end in .png")
        groups = grouped(find(asked.runs), repeated)
        if not any(group.curve(asked.metric) for group in groups):
            raise ValueError(f"--metric={asked.metric}: was not measured in any of these runs")

        # Takes a second to import.
        from litmegalodon.sweeps.comparison import aligned, draw, table, write_csv

        if repeated:
            say(f"mean ± standard deviation over runs that differ in {', '.join(repeated)} only\n")
        say(aligned(table(groups)))
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        draw(asked.out, groups, asked.metric)
        write_csv(asked.out.with_suffix(".csv"), table(groups, exact=True))
        say(f"\ncurves: {short_path(asked.out)}")
        say(f"table: {short_path(asked.out.with_suffix('.csv'))}")


if __name__ == "__main__":
    main()
