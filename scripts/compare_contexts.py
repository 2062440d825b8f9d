"""Compare loss by position: python scripts/compare_contexts.py FOLDER FOLDER ...

Draws what several models lose with all that came before, as src/eval.py evaluation=context has
found it, and writes it as a table. A FOLDER is that of one evaluation, or one that holds several
that differ in their seed only, whose mean is taken; its name is the curve's.
"""

import argparse
import csv
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from litmegalodon.utils import errors
from litmegalodon.utils.printing import say, short_path

OUT = Path(__file__).parents[1] / "logs" / "contexts.png"
TABLE = "context.csv"
COLUMNS = ("name", "runs", "from", "to", "tokens", "bits", "bits_std")


def losses(folder: Path) -> dict[int, list[tuple[int, float]]]:
    """By a bucket's first position, of each evaluation in a folder: tokens, and bits a token.

    Raises:
        ValueError: the folder holds no evaluation.
    """
    tables = [folder / TABLE] if (folder / TABLE).is_file() else sorted(folder.glob(f"*/{TABLE}"))
    if not tables:
        raise ValueError(
            f"FOLDER={folder}: holds no {TABLE}, nor do the folders in it; give the folder of"
            " python src/eval.py evaluation=context"
        )
    found = defaultdict(list)
    for table in tables:
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["context"] == "whole":
                    bits = float(row["loss"]) / math.log(2)
                    found[int(row["from"])].append((int(row["tokens"]), bits))
    return found


def rows(name: str, found: dict[int, list[tuple[int, float]]]) -> list[tuple]:
    """Lines of the table: means and standard deviations over evaluations."""
    lines = []
    for first, values in found.items():
        bits = [value for _, value in values]
        spread = statistics.stdev(bits) if len(bits) > 1 else 0.0
        tokens = values[0][0]
        place = (first, 2 * first - 1, tokens)
        lines.append((name, len(values), *place, statistics.mean(bits), spread))
    return lines


def write(path: Path, table: Sequence[tuple]) -> None:
    """Write the table beside the picture."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *table])


def main() -> None:
    """Write table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=OUT, help="the picture; a .csv goes beside it")
    asked = parser.parse_args()

    with errors.one_line():
        if asked.out.suffix != ".png":
            raise ValueError(f"--out={asked.out}: must end in .png")
        names = Counter(folder.resolve().name for folder in asked.folders)
        if twice := [name for name, times in names.items() if times > 1]:
            raise ValueError(
                f"FOLDER: {twice[0]} is the name of {names[twice[0]]} of them, and a curve has its"
                " folder's; rename them, or put those that differ in their seed only into one"
            )
        table = [line for f in asked.folders for line in rows(f.resolve().name, losses(f))]

        # Takes a second to import.
        from litmegalodon.evaluation.drawing import draw_losses

        curves = defaultdict(list)
        for name, _, first, *_, bits, _ in table:
            curves[name].append((first, bits))
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        draw_losses(asked.out, curves, "bits a token (of bytes: a byte)", "trained on")
        write(asked.out.with_suffix(".csv"), table)
        say(f"curves: {short_path(asked.out)}")
        say(f"table: {short_path(asked.out.with_suffix('.csv'))}")


if __name__ == "__main__":
    main()
