"""A wrong setting gives one sentence with its name, value and fix, before torch is needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from config_helpers import composed
from litmegalodon import checkpoints
from litmegalodon.runs.saved_settings import adopt_settings
from litmegalodon.runs.settings import check_settings
from litmegalodon.utils.command_line import quote_path, read_env
from litmegalodon.utils.printing import opening
from runs import ROOT, command


def assert_says(text: str, pattern: str) -> None:
    assert re.search(f"^{pattern}", text), text
    assert "\n" not in text


def fails(*arguments: str, cwd: Path, script: str = "train", **variables: str) -> str:
    """The one line on stderr of a command that has to fail."""
    done = subprocess.run(
        command(script, *arguments),
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def make_checkpoint(path: Path, age: int = 0) -> Path:
    """A folder that looks like a checkpoint finished `age` seconds ago."""
    path.mkdir(parents=True)
    for name in checkpoints.FILES:
        (path / name).touch()
        now = (path / name).stat().st_mtime
        os.utime(path / name, (now - age, now - age))
    return path


# As a user types them: what is said names the setting, its value and what to do.
MISTAKES = {
    "model.config.z_dim=33 model.config.num_heads=2": "model.config.z_dim=33: .*nearest is 32",
    "model.config.chunk_size=0": "model.config.chunk_size=0: must be at least 1",
    "experiment=70b": "experiment=70b: there is no such experiment; there are 1b, 200m, 7b, ",
    "ckpt_path=.": "ckpt_path=.: is not a checkpoint",
    "ckpt_path=a-step=7.ckpt": "ckpt_path=a-step=7.ckpt: there is no such file",
    "modle.lr=1": "modle.lr: there is no such setting; --help lists them",
    "hparams_search=optuna paths.log_dir=.": "hparams_search=optuna: searches with -m only",
    "data.seq_len=[": "data.seq_len=\\[: cannot be read; quote the value",
    "-m trainer.devices=2 seed=1,2 hydra.sweep.dir=. hydra/launcher=basic": (
        "trainer.devices=2: .* hydra/launcher=basic .*; leave hydra/launcher=runs"
    ),
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistaken_command_ends_in_one_line(arguments: str, tmp_path: Path) -> None:
    several = "-m" in arguments or "hparams_search" in arguments
    place = [] if several else [f"hydra.run.dir={tmp_path}/run"]
    line = fails(*arguments.split(), *place, cwd=tmp_path)
    assert_says(line, f"error: {MISTAKES[arguments]}")


def test_an_evaluation_asks_for_its_checkpoint(tmp_path: Path) -> None:
    line = fails(f"hydra.run.dir={tmp_path}/run", cwd=tmp_path, script="eval")
    assert line == "error: ckpt_path: give the checkpoint to evaluate, or `last` for the newest one"


@pytest.mark.parametrize(
    ("starter", "variables"),
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none"}),
        ("srun", {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}),
    ],
)
def test_processes_started_from_outside_need_one_folder(
    starter: str, variables: dict[str, str], tmp_path: Path
) -> None:
    line = fails(f"paths.log_dir={tmp_path}", cwd=tmp_path, **variables)
    assert_says(line, f"error: hydra.run.dir: {starter}'s processes .*; give them one, as ")


@pytest.mark.parametrize("name", ["train", "generate"])
def test_settings_are_checked_without_torch_and_lightning(name: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'matplotlib', 'pandas'} & set(sys.modules)))\n"
    )
    script = str(ROOT / "src" / f"{name}.py")
    prelude = f"import sys; sys.argv = [{script!r}, 'seed=-1', 'hydra.run.dir=run']; "
    prelude += f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == "error: seed=-1: must be a whole number, at least 0\n"
    assert done.stdout == "[]\n"


def test_help_names_groups_settings_and_examples(tmp_path: Path) -> None:
    done = subprocess.run(command("train", "--help"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    experiments = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
    for text in (
        f"experiment: {', '.join(experiments)}\n",
        "chunk_size: ",
        "ckpt_path=last",
        "-m seed=1,2,3",
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.seq_len=abc", "data.seq_len=abc: must be a whole number, at least 1"),
        ("data.seq_len=0", "data.seq_len=0: must be a whole number, at least 1"),
        ("data.batch_size=1.5", "data.batch_size=1.5: must be a whole number, at least 1"),
        ("data.num_workers=-1", "data.num_workers=-1: must be a whole number, at least 0"),
        ("data.shuffle=maybe", "data.shuffle=maybe: must be true or false"),
        ("data.source.validation_fraction=2", "data.source.validation_fraction=2: must be .*"),
        ("trainer.max_steps=-1", "trainer.max_steps=-1: must be a whole number, at least 1"),
        ("trainer.max_steps=true", "trainer.max_steps=True: must be a whole number, at least 1"),
        ("trainer.max_epochs=3", "trainer.max_epochs=3: .*set trainer.max_steps instead"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: must be a .*"),
        ("trainer.devices=0", "trainer.devices=0: must be a whole number, at least 1, a list .*"),
        ("trainer.devices=[]", r"trainer.devices=\[\]: must be a whole number, .*"),
        ("trainer.devices=3", "data.batch_size=2: counts rows over all 3 .*batch_size=3"),
        ("model.impl=cuda", "model.impl=cuda: must be auto, reference, torch or triton"),
        ("seed=5000000000", "seed=5000000000: must be below 4294967296"),
        ("checkpoint_every=0", "checkpoint_every=0: must be a whole number, at least 1"),
        ("model.scheduler=null", "model.scheduler=null: is needed, as a node with _target_.*"),
        ("model.optimizer=null", "model.optimizer=null: is needed.*"),
        ("trainer.strategy=null", "trainer.strategy=null: is needed.*"),
        ("trainer.strategy=ddp", "trainer.strategy=ddp: is needed.*"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: must be a whole number.*"),
        ("trainer.limit_val_batches=-1", "trainer.limit_val_batches=-1: must be a number of .*"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5: must be a number of .*"),
        ("callbacks.best_checkpoint.monitor=val/nope", ".*monitor=val/nope: must be val/bpb, .*"),
        ("model.activation_checkpointing=1", "model.activation_checkpointing=1: must be true .*"),
        ("train=false", "train=false: with test=false there is nothing to do.*"),
        ("trainer.precision=fp8", "trainer.precision=fp8: must be 32-true or bf16-mixed"),
        ("trainer.accelerator=mps", "trainer.accelerator=mps: must be auto, cpu, cuda or gpu"),
        ("trainer.gradient_clip_val=0", "trainer.gradient_clip_val=0: must be a number above 0"),
        ("validate_every=0", "validate_every=0: must be a whole number, at least 1"),
        ("model.optimizer.lr=fast", "model.optimizer.lr=fast: must be a number above 0"),
        ("model.optimizer.lr=0", "model.optimizer.lr=0: must be a number above 0"),
        ("model.optimizer.betas=[0.9]", r"model.optimizer.betas=\[0.9\]: must be two numbers.*"),
        ("model.optimizer.decay=some", "model.optimizer.decay=some: must be all or matrices"),
        ("model.scheduler.kind=step", "model.scheduler.kind=step: must be cosine, linear or .*"),
        ("model.scheduler.final_ratio=2", "model.scheduler.final_ratio=2: .* at most 1"),
        ("model.scheduler.warmup_steps=5000", "model.scheduler.warmup_steps=5000: .* less than .*"),
        ("model.config.vocab_size=256", "model.config.vocab_size=256: .*set at least 258"),
        ("model.config.dropout=1.0", "model.config.dropout=1.0: .*"),
        ("model.config.model_dim=wide", "model.config.model_dim=wide: .*"),
        ("seed=one", "seed=one: must be a whole number, at least 0"),
        ("tags=[]", r"tags=\[\]: give at least one.*"),
        ("ckpt_path=last", "ckpt_path=last: there is no complete checkpoint under .*/train yet"),
        ("init_from=nowhere", "init_from=nowhere: there is no such file or folder.*"),
        ("init_from=a ckpt_path=b", "init_from=a: ckpt_path=b .* give one of the two"),
    ],
)
def test_a_setting_out_of_range_is_named(overrides: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        check_settings(composed(*overrides.split(), folder=tmp_path))
    assert_says(str(error.value), message)


def test_good_settings_pass_unchanged(tmp_path: Path) -> None:
    cfg = composed("trainer.devices=[0,1]", "trainer.gradient_clip_val=null", folder=tmp_path)
    before = OmegaConf.to_container(cfg, resolve=True)
    check_settings(cfg)
    assert OmegaConf.to_container(cfg) == before


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cfg = composed(f"data.source.root={tmp_path}/empty", folder=tmp_path)
    check_settings(cfg)
    with pytest.raises(ValueError, match=r"^data\.source\.root=.*/empty: "):
        instantiate(cfg.data).setup()


def test_rows_longer_than_the_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that could hold their activations.
    monkeypatch.setattr("litmegalodon.planning.settings.machine_memory", lambda: 2**60)
    cfg = composed("data.seq_len=100000000", folder=tmp_path)
    check_settings(cfg)
    with pytest.raises(ValueError, match=r"^data\.seq_len=100000000: longer than .*; set "):
        instantiate(cfg.data).setup()


def test_last_is_the_newest_complete_checkpoint_of_the_task(tmp_path: Path) -> None:
    runs = tmp_path / "train" / "runs"
    make_checkpoint(runs / "b" / "checkpoints" / "last-step=000900.ckpt", age=60)
    newest = make_checkpoint(runs / "a" / "checkpoints" / "last-step=000020.ckpt", age=30)
    make_checkpoint(tmp_path / "other" / "runs" / "c" / "checkpoints" / "last-step=000001.ckpt")
    torn = make_checkpoint(runs / "d" / "checkpoints" / "last-step=000040.ckpt")
    (torn / "meta.pt").unlink()
    make_checkpoint(runs / "d" / "checkpoints" / "last-step=000030.ckpt.partial")
    cfg = composed("ckpt_path=last", folder=tmp_path)
    check_settings(cfg)
    assert cfg.ckpt_path == str(newest)


def test_last_prefers_the_folder_that_the_run_continues_in(tmp_path: Path) -> None:
    runs = tmp_path / "train" / "runs"
    ours = make_checkpoint(runs / "a" / "checkpoints" / "last-step=000020.ckpt", age=60)
    make_checkpoint(runs / "b" / "checkpoints" / "last-step=000030.ckpt")
    assert checkpoints.find("ckpt_path", "last", runs.parent, run_dir=runs / "a") == ours


def test_a_runs_folder_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    newest = make_checkpoint(run / "checkpoints" / "last-step=000020.ckpt")
    make_checkpoint(run / "checkpoints" / "best-step=000010-bpb=3.1.ckpt", age=9)
    assert checkpoints.find("init_from", str(run), tmp_path) == newest
    assert checkpoints.find("init_from", str(newest), tmp_path) == newest


def test_an_evaluation_takes_the_runs_settings_and_the_command_line_goes_first(
    tmp_path: Path,
) -> None:
    checkpoint = make_checkpoint(tmp_path / "train/runs/a/checkpoints/last-step=000020.ckpt")
    saved = composed("experiment=debug", "seed=5", "trainer.precision=bf16-mixed", folder=tmp_path)
    saved_file = tmp_path / "train" / "runs" / "a" / ".hydra" / "config.yaml"
    saved_file.parent.mkdir()
    OmegaConf.save(saved, saved_file)
    overrides = ["ckpt_path=last", "data.val_batch_size=3", "trainer.devices=1"]
    cfg = composed(*overrides, folder=tmp_path, name="eval")
    adopt_settings(cfg, overrides)
    assert cfg.ckpt_path == str(checkpoint)
    assert cfg.model.config == saved.model.config
    assert (cfg.seed, cfg.data.seed, cfg.model.seed) == (5, 5, 5)
    assert (cfg.data.seq_len, cfg.data.val_batch_size) == (64, 3)
    assert cfg.trainer.precision == "bf16-mixed"
    assert cfg.trainer.limit_val_batches == saved.trainer.limit_val_batches
    check_settings(cfg)


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        (["trainer.max_steps=21"], True),
        (["trainer.max_steps=20"], False),
        (["trainer.max_steps=21", "model.scheduler.kind=constant"], False),
    ],
)
def test_steps_after_the_schedules_end_are_said(
    settings: list[str], is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed("experiment=debug", "extras.print_config=false", *settings, folder=tmp_path)
    check_settings(cfg)
    opening(cfg)
    said = (
        "trainer.max_steps=21 goes past model.scheduler.total_steps=20: " in capsys.readouterr().out
    )
    assert said is is_said


@pytest.mark.parametrize(
    ("typed", "handed_on"),
    [
        ("ckpt_path=a/last-step=000020.ckpt", "ckpt_path='a/last-step=000020.ckpt'"),
        ("init_from=it's (1).ckpt", "init_from='it\\'s (1).ckpt'"),
        ("ckpt_path=a=1.ckpt,b.ckpt", "ckpt_path='a=1.ckpt',b.ckpt"),
        ("ckpt_path='a=1'", "ckpt_path='a=1'"),
        ("ckpt_path=null", "ckpt_path=null"),
        ("data.source.root=a=b", "data.source.root=a=b"),
        ("--help", "--help"),
    ],
)
def test_paths_reach_hydra_as_they_were_typed(typed: str, handed_on: str) -> None:
    assert quote_path(typed) == handed_on


def test_dotenv_sets_what_the_shell_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", "shell")
    monkeypatch.delenv("QUOTED", raising=False)
    monkeypatch.delenv("PLAIN", raising=False)
    file = tmp_path / ".env"
    file.write_text("# a comment\n\nGIVEN=file\nexport QUOTED='a b'\nPLAIN = x=y\n")
    read_env(file)
    assert [os.environ.get(name) for name in ("GIVEN", "QUOTED", "PLAIN")] == [
        "shell",
        "a b",
        "x=y",
    ]
    file.write_text("what is this\n")
    with pytest.raises(ValueError, match=r"\.env, line 1: must be NAME=value"):
        read_env(file)
