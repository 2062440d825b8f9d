"""Reads the float64 vectors of tests/golden and compares with them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
MODELS = sorted(path.stem for path in FOLDER.glob("model_*.json"))


def describe(name: str) -> dict:
    """The JSON beside a file of vectors."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def cases(name: str) -> list[str]:
    """Names of an operator file's cases."""
    return [case["name"] for case in describe(name)["cases"]]


def tensors(name: str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, by the rest of their names."""
    full = load_file(FOLDER / f"{name}.safetensors")
    start = f"{prefix}." if prefix else ""
    return {key[len(start) :]: value for key, value in full.items() if key.startswith(start)}


def relative_error(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max(max|b|, 1e-6): what "equal to a tolerance" means here."""
    assert a.shape == b.shape, f"{tuple(a.shape)} != {tuple(b.shape)}"
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()


def assert_equal(a: Tensor, b: Tensor, tolerance: float = 1e-10, name: str = "") -> None:
    """Fail with the tensor's name and error if a is not equal to b to the tolerance."""
    error = relative_error(a, b)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"


def assert_precise(got: Tensor, plain: Tensor, exact: Tensor, name: str = "") -> None:
    """The precision gate: error against float64 at most twice the plain loop's, plus 2 ulp of
    max|exact|.
    """
    ulp = torch.finfo(got.dtype).eps * exact.abs().max().item()
    error = (got.double() - exact).abs().max().item()
    allowed = 2 * (plain.double() - exact).abs().max().item() + 2 * ulp
    assert error <= allowed, f"{name}: error {error:.2e} > allowed {allowed:.2e}"
