"""What a run adds to its model: data, callbacks and logging beside bare steps."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from litmegalodon.runs.settings import check_settings
from litmegalodon.training.module import MegalodonModule
from measure import Figure, compared
from subjects import step_of

ROOT = Path(__file__).parents[1]
# train.py, and how tests compose a configuration
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

# The first steps make what later ones find made.
WARM_UP = 10


def overhead(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Steps of `make train` against bare ones of another model of its kind on the same batches.

    They take turns within one run: from the end of one bare step to the next optimizer step lie
    the callbacks of a step, its logging, the next batch, and the model's own work.
    """
    from config_helpers import composed
    from train import train

    whole: list[float] = []
    bare: list[float] = []
    began = 0.0
    subject = None
    made = MegalodonModule.optimizer_step

    def step_and_compare(module: MegalodonModule, *args: object, **kwargs: object) -> None:
        nonlocal began, subject
        made(module, *args, **kwargs)
        whole.append(time.perf_counter() - began)
        batch = module._last_batch
        if subject is None:
            # A fresh one: that of the run is sharded, be it over one process.
            model = module.config.build().train()
            model.initialise(module.seed)
            subject = model, module.make_optimizer(model.named_parameters())
        started = time.perf_counter()
        step_of(*subject, batch["tokens"], batch["targets"], batch["resets"])
        began = time.perf_counter()
        bare.append(began - started)

    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    steps = WARM_UP + 20 * pairs
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(
            *("trainer.accelerator=cpu", "extras.print_config=false", f"validate_every={steps}"),
            *(f"trainer.max_steps={steps}", "trainer.limit_val_batches=1"),
            f"data.seq_len={min(1024, lengths['short'])}",
            folder=Path(folder),
        )
        check_settings(cfg)
        MegalodonModule.optimizer_step = step_and_compare
        try:
            train(cfg)
        finally:
            MegalodonModule.optimizer_step = made
    name = "a step of the default run against the bare model's"
    yield compared(name, whole[WARM_UP:], bare[WARM_UP:], must=1.03)
