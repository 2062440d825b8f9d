"""Compare what runs find again: python scripts/compare_recall.py RUN [RUN ...]

Draws accuracy against distance, mean and spread of runs that differ in their seed only, from the
recall.csv of each run; a table goes beside the picture. A RUN is a run's folder, or one that holds
several, as a sweep's.
"""

import argparse
from pathlib import Path

from litmegalodon.utils import errors
from litmegalodon.utils.printing import say, short_path

OUT = Path(__file__).parents[1] / "logs" / "recall.png"


def main() -> None:
    """Write picture and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run or of a sweep")
    parser.add_argument("--chunk", type=int, default=32, help="bytes of a chunk, a dashed line")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture; a .csv goes beside it")
    asked = parser.parse_args()

    with errors.one_line():
        from litmegalodon.sweeps.compared import differences, find, grouped
        from litmegalodon.sweeps.recalled import draw, recalled, write_csv

        if asked.out.suffix != ".png":
            raise ValueError(f"--out={asked.out}: must end in .png")
        runs = find(asked.runs)
        # What they were asked, their tables tell.
        asides = [name for name in differences(runs) if name.startswith("callbacks.")]
        rows = recalled(grouped(runs, ["seed", *asides]))
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        draw(asked.out, rows, asked.chunk)
        write_csv(asked.out.with_suffix(".csv"), rows)
        for path in (asked.out, asked.out.with_suffix(".csv")):
            say(f"written: {short_path(path)}")


if __name__ == "__main__":
    main()
