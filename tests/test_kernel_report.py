"""`make kernels` on kernels of known cost: what it counts, reads in code and refuses."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_report import compiling, grid, roofline

ROOT = Path(__file__).parents[1]


def report(folder: Path, cases: str, targets: str = "sm_90") -> tuple[int, dict, str]:
    """Exit code, JSON and text of a run over toy cases."""
    out = folder / f"{cases}.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), "tests"))}
    command = [sys.executable, "benchmarks/kernels.py", "--targets", targets]
    command += ["--cases", f"kernel_report_toys:{cases}", "--out", str(out)]
    command += ["--cache", str(folder / "cache")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    text = done.stdout + done.stderr
    return done.returncode, json.loads(out.read_text()) if out.exists() else {}, text


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return report(tmp_path_factory.mktemp("sound"), "sound", ",".join(compiling.TARGETS))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return report(tmp_path_factory.mktemp("faulty"), "faulty")


def test_a_report_without_failures(sound):
    code, found, text = sound
    assert code == 0, text
    assert found["failures"] == []
    names = [(p["target"], k["name"]) for p in found["passes"] for k in p["kernels"]]
    expected = itertools.product(compiling.TARGETS, ("copy_kernel", "causal_kernel"))
    assert sorted(names) == sorted(expected)
    for target, name in names:
        assert any(name in line and target in line for line in text.splitlines())


def test_bytes_and_arithmetic_of_a_masked_copy(sound):
    copy = next(p for p in sound[1]["passes"] if p["operator"] == "cema")
    n = 10_000
    padded = -(-n // 256) * 256
    counts = copy["kernels"][0]["counts"]
    assert counts["load"] == counts["load p_x"] == counts["store"] == counts["store p_y"] == 2 * n
    # An addition and an exponential a lane, masked or not.
    assert counts["fp32"] == 2 * padded and counts["special"] == padded
    assert copy["least"] == copy["moved"] == 4 * n and copy["ratio"] == 1


def test_bytes_and_products_of_a_causal_kernel(sound):
    causal = next(p for p in sound[1]["passes"] if p["operator"] == "chunk_attention")
    counts = causal["kernels"][0]["counts"]
    # 4 chunks of 16 tiles, tile i of which meets i + 1.
    pairs = 4 * 16 * 17 // 2
    tile = 2 * 32 * 64
    assert counts["load"] == (2048 // 32 + pairs) * tile
    assert counts["store"] == 2048 // 32 * tile
    assert counts["dot bf16"] == pairs * 2 * (2 * 32 * 32 * 64)


@pytest.mark.parametrize(
    ("target", "instruction"),
    [(target, "MFMA" if target == "gfx942" else "HMMA") for target in compiling.TARGETS],
)
def test_machine_code_of_each_target(sound, target, instruction):
    for one in sound[1]["passes"]:
        if one["target"] != target:
            continue
        [kernel] = one["kernels"]
        assert not kernel["failure"] and kernel["spills"] == 0 and 0 < kernel["registers"] <= 255
        assert sum(kernel["loads"].values()) > 0 and sum(kernel["stores"].values()) > 0
        if one["operator"] == "chunk_attention":
            assert any(instruction in name for name in kernel["tensor_core"])
            assert kernel["shared"] > 0 and kernel["products"] == 2
        else:
            assert kernel["tensor_core"] == {} and kernel["products"] == 0


def test_rooflines_come_from_the_slowest_resource(sound):
    device = roofline.DEVICES["sm_90"]
    copy = next(p for p in sound[1]["passes"] if (p["operator"], p["target"]) == ("cema", "sm_90"))
    assert copy["seconds"] == pytest.approx(40_000 / 3.35e12)
    assert copy["kernels"][0]["bound"] == "bytes"
    counts = {"load": 1, "fp32": 66.9e12, "dot bf16": 989.4e12 * 3}
    assert roofline.seconds(counts, device) == pytest.approx(3)


@pytest.mark.parametrize(
    "reason",
    [
        "cema forward toy sm_90: moves 2.50x the least possible, limit 1.75x",
        "cema backward toy sm_90: moves 3.50x the least possible, limit 2.75x",
        "timestep_norm forward toy sm_90 spilling_kernel: spills ",
        "chunk_attention forward toy sm_90 product_kernel: 262,144 bytes of shared memory",
        "chunk_attention backward toy sm_90 causal_kernel: products without tensor-core",
        "chunk_attention backward toy sm_90: no kernel has tensor-core instructions",
    ],
)
def test_what_fails_is_said_and_ends_with_1(faulty, reason):
    code, found, text = faulty
    assert code == 1, text
    assert any(failure.startswith(reason) for failure in found["failures"]), found["failures"]
    assert f"failed: {reason}" in text


def test_nothing_else_fails(faulty):
    assert len(faulty[1]["failures"]) == 6


def test_an_address_outside_its_tensor_is_refused(tmp_path):
    code, _, text = report(tmp_path, "outside")
    assert code == 1
    assert "store of bytes 1536 to 2000 of p_y, which has 1998" in text


def test_a_share_above_the_limit_fails():
    block = {"shape": "7B", "target": "sm_90", "device": "H100", "direction": "forward"}
    found = {"passes": [], "blocks": [block | {"share": 0.081}, block | {"share": 0.079}]}
    assert len(list(roofline.failures(found))) == 1


def test_numbers_read_in_nvidia_code():
    code = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x0000 */
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000 */
        /*0020*/                   LDGSTS.E.BYPASS.LTC128B.128 [R1], desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4] ;
        /*fff0*/              @P1  STG.E.64 desc[UR4][R2.64], R4 ;
        /*10000*/                  STG.E desc[UR4][R2.64], R4 ;
    """
    log = "8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\nUsed 168 registers,"
    assert compiling.read_sass(code, log, 1024) == compiling.MachineCode(
        168, 32, 1024, {"HGMMA": 1}, {"128": 2, "16": 1}, {"64": 1, "32": 1}
    )


def test_numbers_read_in_amd_code():
    code = """
        global_load_dwordx4 v[2:5], v[2:3], off
        buffer_load_ushort v1, v2, s[4:7], 0 offen
        v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
        global_store_dword v[0:1], v2, off
  - .agpr_count:     0
    .private_segment_fixed_size: 0
    .vgpr_count:     96
    .vgpr_spill_count: 3
    """
    assert compiling.read_gcn(code, 2048) == compiling.MachineCode(
        96, 3, 2048, {"MFMA": 1}, {"128": 1, "16": 1}, {"32": 1}
    )


# How much a program counts, by its index.
KINDS = {
    "all alike": lambda x, y, z: 5,
    "keys before a query": lambda x, y, z: (x % 64 + 1) * 7,
    "from the last to the first": lambda x, y, z: max(0, (512 - x) % 64) * 3,
    "the first slice does more": lambda x, y, z: (x % 64 + 1) * (2 if y == 0 else 1),
    "keys in tiles of two": lambda x, y, z: -(-(x % 64 + 1) // 2),
    "an edge": lambda x, y, z: (5 if x < 512 else 2) * (3 if y < 6 else 1),
    "the last segment reads less": lambda x, y, z: 9 if x < 512 - 32 else 7,
    "blocks in turn, the last shorter": lambda x, y, z: (9 if x % 8 < 4 else 1) * (x < 500),
    "under a diagonal": lambda x, y, z: 10 * (y <= x % 64) + 3 * (y == x % 64) + 1,
    "above a diagonal": lambda x, y, z: 10 * (y >= x % 64) + 1,
    "under a steep diagonal": lambda x, y, z: 10 * (y * 2 >= x % 64) + 1,
    "one long document": lambda x, y, z: x,
}


@pytest.mark.parametrize("shape", [(513, 7, 2), (512, 1, 1), (128, 64, 2), (64, 32, 1), (1, 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_sum_over_a_grid(kind, shape):
    if "diagonal" in kind and shape[1] < 32:
        shape = (128, 32, 2)
    count = KINDS[kind]
    total = grid.Sum(lambda index: Counter(a=count(*index), b=1)).over(shape)
    programs = list(itertools.product(*map(range, shape)))
    assert total == Counter(a=sum(count(*index) for index in programs), b=len(programs))


@pytest.fixture(scope="module")
def real_counts():
    def run(documents: str, **more: str):
        path = os.pathsep.join(str(ROOT / folder) for folder in ("src", "benchmarks"))
        environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"} | more
        command = [sys.executable, "tests/kernel_report_real.py", documents]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    counts = {documents: run(documents) for documents in ("", "0,5,64,65,299")}
    return counts | {"in full": run("", COUNT_IN_FULL="1")}


PASSES = [
    f"{operator} {direction}"
    for operator in ("cema", "timestep_norm", "chunk_attention")
    for direction in ("forward", "backward")
]


@pytest.mark.slow
@pytest.mark.parametrize("documents", ["", "0,5,64,65,299"])
def test_counts_without_memory_are_those_of_a_real_run(real_counts, documents):
    names = [name for name, *_ in real_counts[documents]]
    assert names == PASSES
    for name, with_memory, _, every in real_counts[documents]:
        assert with_memory["load"] > 0 and with_memory["store"] > 0
        for kind in ("load", "store"):
            assert every[kind] == with_memory[kind], (name, kind)


@pytest.mark.slow
def test_shortcuts_change_no_count(real_counts):
    assert real_counts["in full"] == real_counts[""]


@pytest.mark.slow
def test_counts_from_a_part_of_the_programs_are_those_of_all(real_counts):
    for name, _, some, every in real_counts[""]:
        assert some == every, name


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gfx942", "sm_120"])
def test_attention_with_a_cache_and_in_every_dtype_compiles_within_the_limits(tmp_path, target):
    code, found, text = report(tmp_path, "attention", target)
    assert found["failures"] == [] and code == 0, text
    kinds = {p["shape"].removeprefix("200M, ") for p in found["passes"]}
    assert kinds == {
        "DropKey and cache",
        *(f"{dtype}{more}" for dtype in WIDE for more in ("", ", DropKey and cache")),
    }


WIDE = ("float32", "float64")


@pytest.mark.slow
def test_the_operators_kernels_compile_within_the_limits(tmp_path):
    code, found, text = report(tmp_path, "smallest")
    assert found["failures"] == [] and code == 0
    assert [f"{p['operator']} {p['direction']}" for p in found["passes"]] == PASSES
    for one in found["passes"]:
        for kernel in one["kernels"]:
            assert kernel["spills"] == 0 and not kernel["failure"]
            assert kernel["shared"] <= roofline.SHARED["sm_90"]
            assert f" {kernel['name']} " in text
