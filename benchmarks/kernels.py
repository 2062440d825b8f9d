"""`make kernels`: what each Triton kernel needs and moves, without a GPU.

Compiles every kernel of the three operators at the sizes of three models for four GPUs, counts the
bytes and the arithmetic of its programs, prints tables, writes JSON and exits with 1 where
something does not hold. docs/kernels.md explains the columns and how they are counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Compiling and interpreting are two modes of Triton; counting has a process of its own.
os.environ.pop("TRITON_INTERPRET", None)

from kernel_report import markdown, printing, roofline
from kernel_report.child import load
from kernel_report.compiling import TARGETS, MachineCode, compile_launch
from litmegalodon.ops.launch import Launch

ROOT = Path(__file__).parents[1]


def main() -> int:
    options = _options()
    targets = options.targets.split(",")
    start = time.monotonic()
    cases = {target: load(options.cases)(target) for target in targets}
    # A target without a roofline is compiled only.
    for target in cases.keys() - roofline.DEVICES.keys():
        cases[target] = [replace(case, counted=False) for case in cases[target]]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts.json"
        counting = _start_counting(options, output)
        try:
            codes = {t: _compile(cases[t], t, options.cache / "code") for t in targets}
            print("counting", file=sys.stderr)
            if counting.wait() != 0:
                print("error: the programs could not be counted, see above", file=sys.stderr)
                return 1
            counts = json.loads(output.read_text())
        finally:
            counting.kill()
    passes = [
        _pass(case, target, code, counted)
        for target in targets
        for case, code, counted in zip(
            cases[target], codes[target], counts.get(target, [[]] * len(cases[target])), strict=True
        )
    ]
    report = {
        "note": "Times are rooflines: estimates from peaks. No time was measured on a GPU.",
        "devices": {target: asdict(device) for target, device in roofline.DEVICES.items()},
        "passes": passes,
        "blocks": _blocks(passes),
    }
    report["failures"] = list(roofline.failures(report))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    printing.tables(report)
    if options.docs:
        markdown.fill(ROOT / "docs/kernels.md", report)
    print(f"\n{time.monotonic() - start:.0f} s; all figures in {options.out}")
    for failure in report["failures"]:
        print(f"failed: {failure}")
    return 1 if report["failures"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="of %(default)s")
    parser.add_argument("--cases", default="kernel_report.cases:cases", help="module:function")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/kernels.json")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks/.cache")
    parser.add_argument("--docs", action="store_true", help="put the figures into docs/kernels.md")
    return parser.parse_args()


def _start_counting(options: argparse.Namespace, output: Path) -> subprocess.Popen:
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    targets = [t for t in options.targets.split(",") if t in roofline.DEVICES]
    command = [sys.executable, "-m", "kernel_report.child", options.cases, ",".join(targets)]
    command += [str(options.cache / "counts"), str(output)]
    return subprocess.Popen(command, env=environment, stdout=sys.stderr)


def _compile(cases: list, target: str, cache: Path) -> list[list[MachineCode]]:
    """The code of each case's launches."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache.parent / "triton"))
    codes = []
    for case in cases:
        where = f"{target} {case.operator} {case.direction} {case.shape}"
        codes.append([])
        for launch in case.launches:
            start = time.monotonic()
            codes[-1].append(compile_launch(launch, target, cache))
            if time.monotonic() - start > 1:
                seconds = f"{time.monotonic() - start:.0f} s"
                print(f"compiled {where} {launch.kernel.__name__}: {seconds}", file=sys.stderr)
    return codes


def _pass(case, target: str, codes: list[MachineCode], counts: list[dict]) -> dict[str, Any]:
    """One row of the report: a pass of an operator on a target, with its kernels."""
    groups: dict[tuple, list[int]] = {}
    for i, launch in enumerate(case.launches):
        groups.setdefault(_variant(launch), []).append(i)
    kernels = []
    for members in groups.values():
        launch = case.launches[members[0]]
        # The same kernel may be specialised for several values of an argument: the worst counts.
        code = max((codes[i] for i in members), key=lambda c: (c.failure, c.spills, c.registers))
        kernel = {"name": launch.kernel.__name__, "launches": len(members)}
        kernel |= {"tiles": dict(launch.configs[0].tiles), "warps": launch.configs[0].num_warps}
        kernel |= {"stages": launch.configs[0].num_stages} | asdict(code)
        if case.counted:
            kernel["counts"] = dict(sum((Counter(counts[i]) for i in members), Counter()))
            device = roofline.DEVICES[target]
            kernel["seconds"] = sum(roofline.seconds(counts[i], device) for i in members)
            bounds = roofline.limits(kernel["counts"], device)
            kernel["bound"] = max(bounds, key=bounds.get)
        kernels.append(kernel)
    names = ("operator", "direction", "shape", "counted", "tensor_cores")
    result = {name: getattr(case, name) for name in names}
    result |= {"target": target, "least": case.least, "host_bytes": case.host_bytes}
    if case.counted:
        moved = sum(c.get("load", 0) + c.get("store", 0) for c in counts)
        result |= {"moved": moved, "ratio": moved / case.least}
        result["seconds"] = sum(kernel["seconds"] for kernel in kernels)
        result["host_seconds"] = case.host_bytes / roofline.DEVICES[target].bandwidth
    return result | {"kernels": kernels}


def _variant(launch: Launch) -> tuple:
    """What makes two launches of a kernel different programs."""
    constants = {
        p.name: launch.arguments.get(p.name) for p in launch.kernel.params if p.is_constexpr
    }
    return launch.kernel.__name__, repr(constants), repr(launch.configs[0])


def _blocks(passes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CEMA and TimestepNorm against the linear layers of the block they are in."""
    from kernel_report.cases import SHAPES

    blocks = []
    for target, device in roofline.DEVICES.items():
        for shape in SHAPES:
            for direction, times in (("forward", 1), ("backward", 2)):
                key = (target, shape.name, direction)
                parts = [
                    one
                    for one in passes
                    if (one["target"], one["shape"], one["direction"]) == key
                    and one["operator"] in roofline.RECURRENT
                ]
                if len(parts) < len(roofline.RECURRENT) or not all(p["counted"] for p in parts):
                    continue
                matrix = times * shape.matrix_flop / device.peaks["dot bf16"]
                recurrent = sum(one["seconds"] for one in parts)
                host = sum(one["host_seconds"] for one in parts)
                blocks.append(
                    {
                        "target": target,
                        "device": device.name,
                        "shape": shape.name,
                        "direction": direction,
                        "matrix_seconds": matrix,
                        "recurrent_seconds": recurrent,
                        "share": recurrent / matrix,
                        "share_with_host": (recurrent + host) / matrix,
                    }
                )
    return blocks


if __name__ == "__main__":
    sys.exit(main())
