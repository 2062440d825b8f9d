"""Compile recorded launches for GPUs that are not there, and read the machine code.

Pointers are taken to be 16-byte aligned and integers specialised as they are at a real start, from
the recorded arguments. What was found is kept in a folder, by everything it depends on.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from litmegalodon.ops.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Seconds for one kernel and target.
TIME_LIMIT = 180


@dataclass(frozen=True)
class MachineCode:
    """What a kernel needs on a target.

    Attributes:
        registers: a thread's 32-bit registers (gfx942: vector and accumulation registers).
        spills: bytes a thread spills, stores and loads (gfx942: registers spilled).
        shared: bytes of shared memory a program uses.
        tensor_core: number of tensor-core instructions by name, as they stand in the code.
        loads, stores: number of instructions on global memory by width in bits, likewise.
        products: number of matrix products in the program.
        failure: the compiler's message where it made no code; the rest is then 0.
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    tensor_core: dict[str, int] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    stores: dict[str, int] = field(default_factory=dict)
    products: int = 0
    failure: str = ""


def compile_launch(launch: Launch, target: str, cache: Path) -> MachineCode:
    """Compile a launch's default configuration for a target."""
    gpu = TARGETS[target]
    config = launch.configs[0]
    source = _source(launch, gpu)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    parts = (source.hash(), sorted(options.items()), target, triton.__version__)
    key = hashlib.sha256(repr(parts).encode() + Path(__file__).read_bytes()).hexdigest()
    file = cache / f"{key}.json"
    if file.exists():
        return MachineCode(**json.loads(file.read_text()))
    code = _compile(source, gpu, options)
    cache.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(code)))
    return code


def _source(launch: Launch, gpu: GPUTarget) -> ASTSource:
    """A launch's arguments as the compiler wants them: types, constants, alignment."""
    kernel = launch.kernel
    values = launch.arguments | launch.configs[0].tiles
    backend = make_backend(gpu)
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = values.get(parameter.name, parameter.default)
        if parameter.is_constexpr:
            kind, attribute = "constexpr", None
        else:
            kind, attribute = native_specialize_impl(
                type(backend),
                value,
                parameter.is_const,
                not parameter.do_not_specialize,
                not parameter.do_not_specialize_on_alignment,
            )
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(position,)] = value
        elif isinstance(attribute, str):
            attributes[(position,)] = backend.parse_attr(attribute)
    return ASTSource(kernel, signature, constants, attributes)


def _compile(source: ASTSource, gpu: GPUTarget, options: dict[str, Any]) -> MachineCode:
    # The assembler's log comes with a real compilation only.
    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True
    log, errors = io.StringIO(), []
    try:
        with contextlib.redirect_stdout(log), _messages(errors), _at_most(TIME_LIMIT):
            compiled = triton.compile(source, target=gpu, options=options)
    # The compiler raises whatever its passes raise; the report goes on and shows it.
    except Exception as error:
        # The innermost error says what is wrong, the outer ones where.
        what = [*errors, str(error)]
        while error.__cause__ is not None:
            error = error.__cause__
            what.insert(0, str(error))
        what.insert(0, type(error).__name__)
        return MachineCode(failure=re.sub(r"/\S*/(?=src/)", "", ": ".join(what))[:1000])
    shared = compiled.metadata.shared
    if gpu.backend == "hip":
        code = read_gcn(compiled.asm["amdgcn"], shared)
    else:
        code = read_sass(_disassemble(compiled.asm["cubin"]), log.getvalue(), shared)
    return replace(code, products=len(re.findall(r"\btt\.dot\b", compiled.asm["ttir"])))


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Interrupt what takes longer: the assembler may not come back from a kernel that spills."""

    def interrupt(number, frame):
        raise TimeoutError(f"compiling took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _messages(errors: list[str]) -> Iterator[None]:
    """Collect the compiler's lines about errors; it writes whole programs to the real stderr."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            errors += [line for line in lines if re.search(r": (error|note): ", line)]


def _disassemble(binary: bytes) -> str:
    # Triton's own function leaves out what lies beyond the first 64 KiB of code.
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_sass(code: str, log: str, shared: int) -> MachineCode:
    """Figures from NVIDIA machine code and the assembler's log."""
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.M)
    tensor_core: Counter[str] = Counter()
    loads: Counter[str] = Counter()
    stores: Counter[str] = Counter()
    for name in names:
        base, *modifiers = name.split(".")
        if base in ("HMMA", "HGMMA", "UTCHMMA", "DMMA", "IMMA"):
            tensor_core[base] += 1
        elif base in ("LDG", "LDGSTS"):
            loads[_width(modifiers)] += 1
        elif base == "STG":
            stores[_width(modifiers)] += 1
        elif base in ("UTMALDG", "UBLKCP"):
            loads["bulk"] += 1
        elif base == "UTMASTG":
            stores["bulk"] += 1
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    if not registers or not spills or not names:
        raise ValueError(f"neither registers nor spills in the assembler's log: {log!r}")
    return MachineCode(
        max(registers), sum(spills), shared, dict(tensor_core), dict(loads), dict(stores)
    )


def _width(modifiers: list[str]) -> str:
    """Bits a thread moves at once."""
    for modifier in modifiers:
        if modifier in ("256", "128", "64"):
            return modifier
        if modifier in ("U16", "S16"):
            return "16"
        if modifier in ("U8", "S8"):
            return "8"
    return "32"


GCN_WIDTHS = {
    **{"dwordx4": "128", "dwordx3": "96", "dwordx2": "64", "dword": "32"},
    **{"ushort": "16", "sshort": "16", "short": "16", "short_d16": "16", "short_d16_hi": "16"},
    **{"ubyte": "8", "sbyte": "8", "byte": "8", "ubyte_d16": "8", "ubyte_d16_hi": "8"},
}


def read_gcn(code: str, shared: int) -> MachineCode:
    """Figures from AMD assembly text and the metadata at its end."""

    def metadata(name: str) -> int:
        return int(re.search(rf"^\s*\.{name}:\s+(\d+)", code.replace("- .", "  ."), re.M).group(1))

    tensor_core: Counter[str] = Counter()
    accesses: dict[str, Counter[str]] = {"load": Counter(), "store": Counter()}
    for name in re.findall(r"^\s+([a-z]\w+)\s", code, re.MULTILINE):
        if name.startswith("v_mfma"):
            tensor_core["MFMA"] += 1
        elif match := re.fullmatch(r"(?:global|buffer)_(load|store)_(\w+)", name):
            kind, width = match.groups()
            accesses[kind][GCN_WIDTHS.get(width.removesuffix("_lds"), width)] += 1
    return MachineCode(
        metadata("vgpr_count"),
        metadata("vgpr_spill_count"),
        shared,
        dict(tensor_core),
        dict(accesses["load"]),
        dict(accesses["store"]),
    )
