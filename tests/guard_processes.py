"""Two processes train, and the loss of one of them is not finite in steps 3 and 7 to 9.

They gather parameters in bfloat16, and the watchdog is there.

python tests/guard_processes.py FOLDER
"""

import os
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]
os.environ.setdefault("PROJECT_ROOT", str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from guard_helpers import Poison, trained

    # Lightning runs this file again as the second process.
    if os.environ.get("LOCAL_RANK") == "1":
        Poison(pytest.MonkeyPatch(), "loss", {3, 7, 8, 9})
    folder = Path(sys.argv[1])
    settings = ("callbacks.spike_guard.patience=3", "trainer.max_steps=12")
    settings += ("trainer.devices=2", "trainer.strategy.bf16_parameters=true")
    trained(folder, *settings, "trainer.precision=bf16-mixed", f"hydra.run.dir={folder}/run")
