"""Which of a kernel's configurations runs, and which form of an operator `auto` takes."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hard import OPERATORS, RECURRENCES
from litmegalodon.ops import cema, dispatch, launch, timestep_norm

CONFIGS = [launch.Config({"BLOCK": 32}), launch.Config({"BLOCK": 64}, num_warps=8)]


class Kernel:
    """Notes how it is started."""

    def __init__(self):
        self.started = []

    def __getitem__(self, grid):
        return lambda **arguments: self.started.append((grid, arguments))


def grid(tiles):
    return (128 // tiles["BLOCK"],)


def start(kernel, length=100):
    launch.launch(kernel, grid, {"p_x": torch.zeros(2, length), "L": length}, CONFIGS)


@pytest.fixture
def measuring(monkeypatch):
    """As on a GPU: the list of configurations that were measured; the second is the faster."""
    measured = []

    def milliseconds(kernel, grid, arguments, config):
        measured.append(config)
        return 1.0 / config.num_warps

    monkeypatch.setattr(launch, "_can_measure", lambda arguments: True)
    monkeypatch.setattr(launch, "_milliseconds", milliseconds)
    monkeypatch.setattr(launch, "_fastest_of", {})
    return measured


def test_the_first_configuration_is_taken_where_nothing_can_be_measured():
    kernel = Kernel()
    start(kernel)
    [(programs, arguments)] = kernel.started
    assert programs == (4,)
    assert arguments["BLOCK"] == 32
    assert arguments["num_warps"] == 4
    assert arguments["L"] == 100


def test_the_fastest_configuration_is_measured_once_for_a_kernel_and_size(measuring):
    kernel = Kernel()
    for length in (100, 101, 128):
        start(kernel, length)
    assert measuring == CONFIGS
    assert [(g, a["BLOCK"]) for g, a in kernel.started] == [((2,), 64)] * 3
    start(kernel, 129)
    start(Kernel(), 100)
    assert measuring == CONFIGS * 3


def test_a_configuration_that_the_device_can_not_run_is_not_taken(measuring, monkeypatch):
    monkeypatch.setattr(
        launch, "_milliseconds", lambda k, g, a, c: math.inf if c is CONFIGS[1] else 1.0
    )
    kernel = Kernel()
    start(kernel)
    assert kernel.started[0][1]["BLOCK"] == 32


def test_nothing_is_measured_or_run_while_recording(measuring):
    kernel = Kernel()
    with launch.recording() as launches:
        start(kernel)
    assert (kernel.started, measuring) == ([], [])
    assert [entry.kernel for entry in launches] == [kernel]
    assert launches[0].configs == tuple(CONFIGS)


def test_deterministic_runs_and_the_interpreter_do_not_measure(monkeypatch):
    on_gpu = {"p_x": SimpleNamespace(is_cuda=True, device="cuda:0")}
    monkeypatch.setattr(launch, "Tensor", SimpleNamespace)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert launch._can_measure(on_gpu)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert not launch._can_measure(on_gpu)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not launch._can_measure(on_gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    torch.use_deterministic_algorithms(True)
    try:
        assert not launch._can_measure(on_gpu)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("programs", ((2**31, 1), (1, 65_536), (1, 1, 65_536)))
def test_a_grid_that_no_device_takes_is_refused(programs):
    kernel = SimpleNamespace(__name__="kernel")
    with pytest.raises(ValueError, match=r"kernel: .* programs; a grid has at most"):
        launch.launch(kernel, lambda tiles: programs, {}, CONFIGS)


def forms():
    return {"reference": lambda: "reference", "torch": lambda: "torch", "triton": lambda: "triton"}


@pytest.mark.parametrize(
    "on_gpu, installed, refusal, want",
    (
        (True, True, None, "triton"),
        (True, True, "takes no mask", "torch"),
        (True, False, None, "torch"),
        (False, True, None, "torch"),
    ),
    ids=("served", "refused", "not-installed", "cpu"),
)
def test_auto_takes_triton_on_a_gpu_where_it_serves(on_gpu, installed, refusal, want, monkeypatch):
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    x = SimpleNamespace(is_cuda=on_gpu, device="cuda" if on_gpu else "cpu")
    assert dispatch.choose("op", "auto", forms(), x, refusal)() == want
    without = {k: v for k, v in forms().items() if k != "triton"}
    assert dispatch.choose("op", "auto", without, x, refusal)() == "torch"


@pytest.mark.parametrize("operator", [o for o in OPERATORS if o.name in RECURRENCES])
def test_triton_is_refused_with_the_reason_where_it_can_not_run(operator, monkeypatch):
    given = operator.inputs(1, 4, 0)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match="not on cpu; use impl='torch', or set TRITON_INTERPRET=1"
        ):
            operator.call(given, None, "triton")
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    with pytest.raises(ValueError, match=r"needs the package triton, .*Linux only"):
        operator.call(given, None, "triton")
    operator.call(given, None, "auto")


def test_triton_is_refused_for_what_its_kernels_do_not_serve(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_refusal", lambda x: None)
    zeros = torch.zeros(2, 33, 1)
    with pytest.raises(ValueError, match="at most 32 states a channel, not 33; use impl='torch'"):
        cema(
            torch.zeros(1, 2, 2),
            zeros,
            zeros,
            zeros[:, :1],
            torch.zeros(2, 33, 2),
            zeros[:, 0],
            impl="triton",
        )
    with pytest.raises(ValueError, match="at most 8,192 features a group, not 8193"):
        timestep_norm(
            torch.zeros(1, 1, 8193), torch.zeros(8193), torch.zeros(8193), 1, 1e-5, impl="triton"
        )


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_more_rows_than_a_grid_has_are_left_to_torch(operator, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_refusal", lambda x: None)
    given = operator.inputs(1, 1, 0)
    parameters = ("alpha", "delta", "theta", "gamma", "omega", "weight", "bias")
    many = {k: v if k in parameters else v.expand(2**16, *v.shape[1:]) for k, v in given.items()}
    with pytest.raises(ValueError, match=r"at most 65,535 rows times heads, not .*impl='torch'"):
        operator.call(many, None, "triton")
    operator.call(many, None, "auto")


def test_importing_the_operators_imports_no_kernels():
    # torch may import triton itself; a machine without it must do.
    code = "import sys; sys.modules['triton'] = None; import litmegalodon.ops, litmegalodon.models"
    environment = os.environ | {"PYTHONPATH": str(Path(dispatch.__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
