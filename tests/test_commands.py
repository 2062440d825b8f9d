"""Every command that README, docs and experiments show is one that the project takes.

Nothing is run here: settings are composed and checked as the script itself does before it begins,
runs over several GPUs are planned, options go through their own parser, and make's targets are
expanded by make and looked at in turn. What is left out stands in UNCHECKED, with the reason.
"""

import argparse
import importlib
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf
from prepare_corpus import machine_of
from show_data import check_show
from torch.distributed.run import get_args_parser

from config_helpers import composed
from documented import OTHER, PAGES, ROOT, blocks, commands
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.models.config import SWITCHES
from litmegalodon.planning import settings as plan_settings
from litmegalodon.planning.devices import DEVICES
from litmegalodon.planning.settings import check_plan, run_of
from litmegalodon.runs.request import check_request
from litmegalodon.runs.settings import check_batches, check_mesh, check_settings, check_values
from litmegalodon.utils.command_line import quote_path, take_texts
from plan import take_fewest
from test_cli_make import make
from test_cli_settings import make_checkpoint

COMMANDS = commands()
UNCHECKED = {
    "pre-commit": "writes a hook into the clone; CI's `make lint` is what it runs",
    "curl": "asks scripts/serve.py, which tests/test_scripts_serve.py asks likewise",
    "xxhsum": "a program from elsewhere",
}
# Files that commands name, as a user would have them.
NAMED = ("my_tasks/my_task.yaml", "x.jsonl", "y.txt", "prompts.jsonl", "book.txt")
NAMED += ("book.safetensors", "books/one.txt")
# Pages whose Python is run, and by which test.
PYTHON = {
    "README.md": "test_readme.py",
    "docs/generate.md": "test_readme.py",
    "docs/interop.md": "test_interop_docs.py",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_the_project_takes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "train" / "runs" / "a" / "checkpoints" / "last-step=000900.ckpt")
    for name in NAMED:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    check(re.sub(r"<[^>]*>", "given", command), tmp_path, monkeypatch)


def check(command, folder, monkeypatch):
    """Look at a command as far as that is possible without running it."""
    program, *words = [w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w)]
    # What the reader is to fill in.
    words = [w for w in words if not w.endswith("...")]
    if program in UNCHECKED:
        return
    if program == "make":
        check_make(command, folder, monkeypatch)
    elif program == "torchrun":
        # An option alone, as it is spoken of, goes with any script.
        given = get_args_parser().parse_args(words if "src/train.py" in words else [*words, "a.py"])
        assert given.training_script in ("src/train.py", "a.py")
        check_train(given.training_script_args, folder, monkeypatch)
    elif program == "sbatch":
        check_sbatch(words, folder, monkeypatch)
    elif program == "pip":
        check_extra(words)
    elif program == "source":
        # `make setup` has made it.
        assert words == [".venv/bin/activate"]
    else:
        assert program.removeprefix(".venv/bin/") == "python", command
        check_python(words, folder, monkeypatch)


def check_make(command, folder, monkeypatch):
    variables = {n: v for n, _, v in (w.partition("=") for w in shlex.split(command)[1:])}
    # Else each make would look for a Python that runs.
    variables.setdefault("PYTHON", sys.executable)
    done = make("-n", *(f"{n}={v}" if v else n for n, v in variables.items()))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if re.match(r"\.venv/bin/python (src|scripts|benchmarks)/", line):
            # The prompt goes through the environment.
            line = line.replace("$PROMPT", variables.get("PROMPT", ""))
            check(line, folder, monkeypatch)
    if "sweep" in variables:
        assert (ROOT / "configs" / "sweep" / f"{variables['SWEEP']}.yaml").is_file()


def check_sbatch(words, folder, monkeypatch):
    options = dict(w.partition("=")[::2] for w in words if w.startswith("--"))
    if "--wrap" in options:
        wrapped = options["--wrap"].replace("$SLURM_ARRAY_TASK_ID", "1").replace(" ... ", " ")
        check(wrapped, folder, monkeypatch)
        return
    script, *given = [w for w in words if not w.startswith("--")]
    text = (ROOT / script).read_text()
    (processes,) = re.findall(r"^#SBATCH --ntasks-per-node=(\d+)$", text, re.MULTILINE)
    nodes = options.get("--nodes") or re.findall(r"^#SBATCH --nodes=(\d+)$", text, re.MULTILINE)[0]
    machines = [f"trainer.num_nodes={nodes}", f"trainer.devices={processes}"]
    check_train([*machines, "ckpt_path=auto", *given], folder, monkeypatch)


def check_extra(words):
    names = re.fullmatch(r"litmegalodon\[([\w,]+)\]", words[-1])[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    assert set(names) <= set(project["optional-dependencies"])


def check_python(words, folder, monkeypatch):
    script, *given = words
    if script == "-m":
        assert given[0] == "pytest"
        assert all((ROOT / word).exists() for word in given if word.startswith("tests/"))
        return
    path = ROOT / script
    assert path.is_file()
    monkeypatch.setattr(sys, "argv", [script, *given])
    by_script = {
        "src/train.py": check_train,
        "src/plan.py": check_plan_of,
        "src/eval.py": check_eval,
        "src/generate.py": check_generate,
    }
    if script in by_script:
        by_script[script](given, folder, monkeypatch)
    elif script == "scripts/serve.py":
        assert 1 <= len(given) <= 2
    elif (ROOT / "configs" / f"{path.stem}.yaml").is_file():
        check_script(path.stem, given, folder)
    elif "argparse" in path.read_text():
        check_options(path, monkeypatch)
    else:
        # It takes nothing, or one number.
        assert all(word.isdecimal() for word in given)


class Parsed(Exception):
    """The options of a script have been read."""


def check_options(path, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    if "TRITON_INTERPRET" in os.environ:
        # A script may take it away, from itself.
        monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])
    with pytest.raises(Parsed):
        importlib.import_module(path.stem).main()


def runs_of(words):
    """The settings of each run of a command: every value of what a sweep varies, though not every
    combination, and of seeds and learning rates the first.
    """
    flags = [w for w in words if w in ("-m", "--help")]
    given = [quote_path(w) for w in words if w not in flags]
    varied, fixed = {}, []
    for override in OverridesParser.create().parse_overrides(given):
        if not override.is_sweep_override():
            fixed.append(override.input_line)
            continue
        assert "-m" in flags
        name = override.key_or_group
        if override.is_choice_sweep():
            values = list(override.sweep_string_iterator())
            alike = name in ("seed", "model.optimizer.lr")
            varied[name] = [f"{name}={v}" for v in (values[:1] if alike else values)]
        else:
            varied[name] = [f"{name}={override.value().start}"]
    firsts = [values[0] for values in varied.values()]
    runs = [[*fixed, *firsts]]
    for name, values in varied.items():
        others = [v[0] for n, v in varied.items() if n != name]
        runs += [[*fixed, *others, value] for value in values[1:]]
    return runs


def with_checkpoint(words):
    """The settings, with a checkpoint that is there in the place of the one that is named."""
    return [re.sub(r"^(ckpt_path|init_from)=(?!auto).*", r"\1=last", word) for word in words]


def check_train(words, folder, monkeypatch):
    # The GPUs are elsewhere, and the machine's memory is its own affair.
    monkeypatch.setattr(plan_settings, "machine_memory", lambda: 10**15)
    # docs/customise.md adds it, and tests/test_docs.py applies that page.
    monkeypatch.setitem(SWITCHES, "norm", (*SWITCHES["norm"], "tanh"))
    for settings in runs_of(with_checkpoint(words)):
        cfg = composed(*settings, folder=folder)
        # Nor are the files that are made before.
        if cfg.data.tokenizer._target_.endswith("SentencePieceTokenizer"):
            cfg.data.tokenizer = {"_target_": "litmegalodon.data.ByteTokenizer"}
        if cfg.data.source._target_.endswith("PreparedCorpus"):
            cfg.data.source = {"_target_": "litmegalodon.data.StdlibSource"}
        check_settings(cfg)
        # Plans know the sizes of a Megalodon only.
        baseline = "Megalodon" not in cfg.model.config._target_
        if not baseline and (cfg.trainer.accelerator == "cuda" or cfg.trainer.num_nodes > 1):
            check_fits(cfg)


def check_fits(cfg):
    """A run over GPUs is one that H100s with 80 GB can hold."""
    degrees = check_mesh(cfg, cfg.trainer.devices * cfg.trainer.num_nodes)
    check_batches(cfg, degrees.readers)
    run = run_of(cfg, degrees, cfg.trainer.devices, triton=True)
    assert run.fits(DEVICES["h100"]), f"{run.total / 2**30:.1f} GiB"


def check_plan_of(words, folder, monkeypatch):
    cfg = composed(*words, folder=folder, name="plan")
    check_values(cfg)
    check_plan(cfg)
    take_fewest(cfg, words)
    degrees = check_mesh(cfg, cfg.trainer.devices * cfg.trainer.num_nodes)
    check_batches(cfg, degrees.readers)
    assert run_of(cfg, degrees, cfg.trainer.devices, triton=True).total > 0


def check_eval(words, folder, monkeypatch):
    words = with_checkpoint(words)
    cfg = composed(*words, folder=folder, name="eval")
    check_evaluation(cfg, words)
    check_settings(cfg)
    if cfg.get("evaluation"):
        instantiate(cfg.evaluation)


def check_generate(words, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generate.py", *with_checkpoint(words)])
    texts = take_texts("prompt", "stop")
    asked = check_request(composed(*sys.argv[1:], folder=folder, name="generate"), texts)
    assert asked.prompts or asked.document


def check_script(name, words, folder):
    cfg = composed(*words, folder=folder, name=name)
    assert not any(OmegaConf.is_missing(cfg, key) for key in cfg)
    if name == "show_data":
        check_show(cfg)
        check_settings(cfg)
    else:
        check_values(cfg)
    if name == "prepare_corpus":
        machine_of(cfg.shard)


def test_there_are_commands_of_every_kind():
    programs = {c.split()[0] for c in COMMANDS}
    assert {"python", "make", "torchrun", "sbatch", "pip"} | set(UNCHECKED) <= programs
    for script in ("train", "eval", "generate", "plan"):
        assert any(f"src/{script}.py" in c for c in COMMANDS), script
    assert len(COMMANDS) > 100


def test_python_that_a_page_shows_is_run_by_a_test():
    assert {
        str(page.relative_to(ROOT))
        for page in PAGES
        if any(language == "python" for language, _ in blocks(page.read_text()))
    } == set(PYTHON)
    for test in PYTHON.values():
        assert "exec(code" in (ROOT / "tests" / test).read_text()


def test_a_block_of_code_says_what_it_is():
    for page in PAGES:
        languages = {language for language, _ in blocks(page.read_text())}
        assert languages <= {"", *OTHER}, page
