"""The figures of docs/kernels.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel_report.roofline import DEVICES

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
# The shape whose kernels are shown one by one.
SHAPE = "7B"


def fill(page: Path, report: Mapping[str, Any]) -> None:
    """Replace what stands between the two marks of a page."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text("\n".join([before + BEGIN, *_lines(report), END + after]))


def _lines(report: Mapping[str, Any]) -> Iterable[str]:
    passes = report["passes"]
    targets = list(dict.fromkeys(one["target"] for one in passes))
    yield from ("From `make kernels`; times are estimates, none was measured on a GPU.", "")
    yield f"Machine code at {SHAPE}: registers, spills / KiB of shared memory / tensor-core"
    yield "instructions."
    yield from ("", *_table(["kernel", *targets], _code(passes, targets)), "")
    yield f"Attention at {SHAPE} in dtypes without tensor cores on every target, likewise; the most"
    yield "that a kernel of a pass needs."
    yield from ("", *_table(["pass", *targets], _wide_code(passes, targets)), "")
    yield f"Work at {SHAPE}, with the tiles of sm_90 (those of MI300X and A100 for their times)."
    head = ["kernel", "starts", "MB loaded", "MB stored", "x least", "Gflop fp32", "Gflop products"]
    devices = {target: device for target, device in DEVICES.items() if target in targets}
    head += [f"{device.name}, µs" for device in devices.values()]
    yield from ("", *_table(head, _work(passes, list(devices))), "")
    yield "Bytes moved over the least possible (tiles of sm_90)."
    shapes = list(dict.fromkeys(one["shape"] for one in passes if one["counted"]))
    yield from ("", *_table(["pass", *shapes], _ratios(passes, shapes)), "")
    yield "CEMA and TimestepNorm against the block's linear layers, both as rooflines."
    head = ["device", "pass", *shapes]
    yield from ("", *_table(head, _shares(report["blocks"], shapes)), "")
    failures = report["failures"]
    yield "What fails: " + ("nothing." if not failures else "")
    yield from (f"- {failure}" for failure in failures)


def _label(one: Mapping[str, Any], kernel: Mapping[str, Any]) -> str:
    tiles = ", ".join(f"{name} {size}" for name, size in kernel["tiles"].items())
    name = kernel["name"].removesuffix("_kernel").replace("_", " ")
    return f"{one['operator']} {one['direction']}: {name}" + (f" ({tiles})" if tiles else "")


def _of(passes, target: str, shape: str = SHAPE) -> list[Mapping[str, Any]]:
    return [
        one
        for one in passes
        if one["target"] == target and one["shape"].startswith(shape) and one["tensor_cores"]
    ]


def _rows(passes, targets: Sequence[str]) -> list[list[tuple | None]]:
    """(pass, kernel) of each target beside each other, None where a target has no such kernel."""
    found: dict[tuple, list[tuple | None]] = {}
    for column, target in enumerate(targets):
        for one in _of(passes, target):
            seen: Counter[str] = Counter()
            for kernel in one["kernels"]:
                seen[kernel["name"]] += 1
                place = (one["operator"], one["direction"], one["shape"], kernel["name"])
                row = found.setdefault((*place, seen[kernel["name"]]), [None] * len(targets))
                row[column] = (one, kernel)
    return list(found.values())


def _code(passes, targets: Sequence[str]) -> Iterable[list[str]]:
    for row in _rows(passes, targets):
        one, kernel = next(pair for pair in row if pair)
        name = kernel["name"].removesuffix("_kernel").replace("_", " ")
        suffix = one["shape"].removeprefix(SHAPE)
        cells = [f"{one['operator']} {one['direction']}{suffix}: {name}"]
        for pair in row:
            if pair is None or pair[1]["failure"]:
                cells.append("-" if pair is None else "does not compile")
                continue
            k = pair[1]
            products = " ".join(f"{n} {name}" for name, n in k["tensor_core"].items()) or "-"
            spills = f"{k['spills']} spilled" if k["spills"] else "0"
            cells.append(f"{k['registers']}, {spills} / {k['shared'] / 1024:.0f} / {products}")
        yield cells


def _wide_code(passes, targets: Sequence[str]) -> Iterable[list[str]]:
    found: dict[tuple, dict[str, str]] = {}
    for one in passes:
        if one["tensor_cores"]:
            continue
        place = (one["operator"], one["direction"], one["shape"].removeprefix(f"{SHAPE}, "))
        most = [max(k[name] for k in one["kernels"]) for name in ("registers", "spills", "shared")]
        cell = f"{most[0]}, {most[1]} / {most[2] / 1024:.0f}"
        if any(kernel["failure"] for kernel in one["kernels"]):
            cell = "does not compile"
        found.setdefault(place, {})[one["target"]] = cell
    for (operator, direction, kind), cells in found.items():
        yield [f"{operator} {direction}, {kind}", *(cells.get(target, "-") for target in targets)]


def _work(passes, targets: Sequence[str]) -> Iterable[list[str]]:
    main = targets.index("sm_90") if "sm_90" in targets else 0
    for row in _rows(passes, targets):
        if row[main] is None or not row[main][0]["counted"]:
            continue
        one, kernel = row[main]
        counts = kernel["counts"]
        loaded, stored = counts.get("load", 0), counts.get("store", 0)
        products = sum(v for k, v in counts.items() if k.startswith("dot "))
        yield [
            _label(one, kernel),
            str(kernel["launches"]),
            f"{loaded / 1e6:,.0f}",
            f"{stored / 1e6:,.0f}",
            f"{(loaded + stored) / one['least']:.2f}",
            f"{counts.get('fp32', 0) / 1e9:,.1f}",
            f"{products / 1e9:,.0f}",
            *(f"{pair[1]['seconds'] * 1e6:,.0f}" if pair else "-" for pair in row),
        ]


def _ratios(passes, shapes: Sequence[str]) -> Iterable[list[str]]:
    found = {(p["operator"], p["direction"], p["shape"]): p for p in _of(passes, "sm_90", "")}
    for operator, direction in dict.fromkeys((o, d) for o, d, _ in found):
        ratios = [f"{found[operator, direction, shape]['ratio']:.2f}" for shape in shapes]
        yield [f"{operator} {direction}", *ratios]


def _shares(blocks, shapes: Sequence[str]) -> Iterable[list[str]]:
    found = {(b["device"], b["direction"], b["shape"]): b["share"] for b in blocks}
    for device, direction in dict.fromkeys((d, p) for d, p, _ in found):
        yield [device, direction, *(f"{found[device, direction, s]:.1%}" for s in shapes)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
