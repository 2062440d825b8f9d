"""A million tokens one by one in float32: how far CEMA and TimestepNorm drift from float64.

    python benchmarks/drift.py [TOKENS]

Half-lives to 70,000 tokens, inputs of mean 3, as in the tests; about two minutes.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_ops_million import LENGTH, cema_of, cema_steps_of, norm_of, norm_steps_of


def drift(steps, operator, x: torch.Tensor) -> tuple[float, float]:
    """Largest error of single-token steps and of one call, relative to the largest output."""
    one, state, outputs = steps(torch.float32), None, []
    for t in range(x.shape[1]):
        y, state = one(x[:, t : t + 1], state)
        outputs.append(y)
    exact = operator(torch.float64)(x)[0]
    errors = (torch.cat(outputs, dim=1) - exact, operator(torch.float32)(x)[0] - exact)
    return tuple((error.abs().max() / exact.abs().max()).item() for error in errors)


if __name__ == "__main__":
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else LENGTH
    torch.set_num_threads(1)
    x = torch.randn(1, tokens, 6, generator=torch.Generator().manual_seed(0)) + 3
    with torch.no_grad():
        for name, steps, operator in (
            ("CEMA", cema_steps_of, cema_of),
            ("TimestepNorm", norm_steps_of, norm_of),
        ):
            single, whole = drift(steps, operator, x)
            print(f"{name:14} {tokens:,} steps {single:.1e}, one call {whole:.1e}", flush=True)
