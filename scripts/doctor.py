"""What this machine offers a run, and what is wrong: python scripts/doctor.py [--logs logs]

Exit code 1 where a run would fail.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print every finding as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--logs", type=Path, default=ROOT / "logs", help="where runs write")
    arguments = parser.parse_args()
    try:
        from litmegalodon.runs.doctor import examine
    except ImportError as error:
        print(f"fault  packages     {error}\n       fix: make setup")
        return 1
    faults = 0
    for finding in examine(ROOT, arguments.logs):
        print(f"{finding.state:6} {finding.what:12} {finding.text}", flush=True)
        if finding.fix:
            print(f"       fix: {finding.fix}", flush=True)
        faults += finding.state == "fault"
    print(f"faults: {faults or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
