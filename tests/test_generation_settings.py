"""What a command asks to be read and written: files, standard input, texts as they were typed."""

import io
import os
import sys

import pytest

from config_helpers import composed
from inference_helpers import TOKENIZER
from litmegalodon.inference import prompts
from litmegalodon.inference.prompts import TextFiles, checked, find_text
from litmegalodon.runs.request import check_request
from litmegalodon.utils.command_line import take_texts
from test_cli_settings import make_checkpoint

NO_TEXTS = {"prompt": [], "stop": []}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a checkpoint of training is; nothing is on standard input."""
    make_checkpoint(tmp_path / "train" / "runs" / "a" / "checkpoints" / "last-step=000020.ckpt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return tmp_path


def request_of(folder, *overrides, prompt=(), stop=()):
    cfg = composed("ckpt_path=last", *overrides, folder=folder, name="generate")
    return check_request(cfg, {"prompt": list(prompt), "stop": list(stop)}), cfg


TYPED = [
    "def f(x):",
    "a=b",
    "Hello, world",
    '"quoted" \'twice',
    "{'a': [1, 2]} ${oops}",
    "two\nlines",
    "back\\slash \\' ",
    "",
    " ",
    "null",
    "-m",
]


@pytest.mark.parametrize("name", ["prompt", "stop"])
def test_texts_are_taken_as_they_are_typed(name, monkeypatch):
    arguments = [f"{name}={text}" for text in TYPED]
    others = ["ckpt_path=last", "seed=2", "--help", "prompt_file=a", f"+{name}=x", name]
    argv = ["generate.py", others[0], *arguments, *others[1:]]
    monkeypatch.setattr(sys, "argv", argv)
    taken = take_texts("prompt", "stop")
    assert taken == {"prompt": [], "stop": []} | {name: TYPED}
    assert sys.argv == ["generate.py", *others]


def test_a_prompt_keeps_every_byte(folder):
    asked, _ = request_of(folder, prompt=["é", "\N{EURO SIGN}\n"])
    assert asked.prompts == ("é".encode(), "\N{EURO SIGN}\n".encode())


def test_last_is_the_newest_checkpoint_of_training(folder):
    asked, cfg = request_of(folder, prompt=["a"])
    assert cfg.ckpt_path.endswith("train/runs/a/checkpoints/last-step=000020.ckpt")
    assert (asked.document, asked.standard_input) == (None, False)


def test_standard_input_is_read_where_nothing_else_is_named(folder, monkeypatch):
    assert request_of(folder)[0].standard_input
    assert request_of(folder)[0].prompts == (b"",)
    assert request_of(folder, "prompt_file=-", prompt=["a"])[0].standard_input
    assert not request_of(folder, prompt=[""])[0].standard_input
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert not request_of(folder)[0].standard_input
    monkeypatch.setattr(sys, "stdin", None)
    assert not request_of(folder)[0].standard_input


def test_texts_may_stand_in_a_config_file_too(folder):
    asked, _ = request_of(folder, "prompt=[a,b]", "stop=end")
    assert asked.prompts == (b"a", b"b")
    assert asked.stops == ("end",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("temperature=-1", "temperature=-1: must be 0 .*"),
        ("temperature=null", "temperature=None: must be 0 .*"),
        ("top_k=0", "top_k=0: must be a whole number, at least 1.*"),
        ("top_p=2", "top_p=2: must be above 0 and at most 1.*"),
        ("min_p=x", "min_p=x: must be at least 0.*"),
        ("repetition_penalty=0", "repetition_penalty=0: must be above 0.*"),
        ("max_new_tokens=-1", "max_new_tokens=-1: must be a whole number, at least 0"),
        ("max_new_tokens=0", "max_new_tokens=0: without save_state= there is nothing to do.*"),
        ("piece_tokens=0", "piece_tokens=0: must be a whole number, at least 1"),
        ("seed=-1", "seed=-1: must be a whole number, at least 0"),
        ("dtype=fp8", "dtype=fp8: must be float32, bfloat16 or float64"),
        ("device=tpu", "device=tpu: must be auto, cpu or cuda"),
        ("prompt=3", "prompt=3: must be a text or a list of texts"),
        ("state=nowhere", "state=nowhere: there is no such file; make one with save_state="),
        ("save_state=nowhere/a", "save_state=nowhere/a: must be a file in a folder that exists"),
        ("save_state=.", "save_state=.: must be a file in a folder that exists"),
        ("save_state=a prompt=[b,c]", "save_state=a: 2 prompts leave as many states.*"),
        ("prompt_file=nowhere", "prompt_file=nowhere: there is no such file or folder"),
        ("ckpt_path=null", "ckpt_path: give the checkpoint to write with, or `last`.*"),
        ("ckpt_path=nowhere", "ckpt_path=nowhere: there is no such file or folder.*"),
    ],
)
def test_a_setting_out_of_range_is_named(overrides, message, folder):
    with pytest.raises(ValueError, match=f"^{message}$"):
        request_of(folder, *overrides.split())


def test_a_stop_list_that_is_too_long_is_named(folder):
    with pytest.raises(ValueError, match=r"^stop: has 65 strings; give at most 64$"):
        request_of(folder, prompt=["a"], stop=["x"] * 65)


def test_a_prompt_that_is_no_text_is_named(folder):
    with pytest.raises(ValueError, match=r"^prompt=a.: is no UTF-8 text, byte 1 is no character"):
        request_of(folder, prompt=[os.fsdecode(b"a\xff")])


def test_a_file_is_read_as_it_is(tmp_path):
    file = tmp_path / "a=b, (c).txt"
    file.write_bytes("line\r\nend \N{EURO SIGN}".encode())
    text = find_text("prompt_file", str(file))
    assert b"".join(text.blocks()) == file.read_bytes()
    assert text.count_tokens(TOKENIZER) == file.stat().st_size


def test_a_folder_is_read_in_sorted_order_without_what_is_no_text(tmp_path):
    for name, data in {
        "b.txt": b"B",
        "a/z.txt": b"Z",
        "a/b/c.txt": b"C",
        "c.png": b"\x89PNG\xff",
        ".git/config": b"no",
        "a/.hidden": b"no",
        "empty.txt": b"",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    text = find_text("prompt_file", str(tmp_path))
    assert b"".join(text.blocks()) == b"CZB"
    assert [path.name for path in text.left_out] == ["c.png"]
    assert text.count_tokens(TOKENIZER) == 3


def test_what_is_no_text_ends_in_a_sentence_that_names_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "BLOCK", 3)
    file = tmp_path / "image.png"
    file.write_bytes("ab\N{EURO SIGN}cd".encode() + b"\xff" + b"e" * 9)
    with pytest.raises(ValueError, match=r"^prompt_file=.*image\.png: is no UTF-8 text, byte 7 is"):
        find_text("prompt_file", str(file))
    file.write_bytes(b"abcd\xe2\x82")
    with pytest.raises(ValueError, match=r"^prompt_file=.*image\.png: is no UTF-8 text, byte 4 is"):
        find_text("prompt_file", str(file))
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        ValueError, match=r"^prompt_file=.*: the folder holds no file of UTF-8 text"
    ):
        find_text("prompt_file", str(tmp_path / "folder"))
    file.rename(tmp_path / "folder" / "image.png")
    with pytest.raises(
        ValueError, match=r"^prompt_file=.*: the folder holds no file of UTF-8 text"
    ):
        find_text("prompt_file", str(tmp_path / "folder"))


def test_a_pipe_is_read_once(tmp_path):
    read, write = os.pipe()
    os.write(write, b"abc")
    os.close(write)
    text = find_text("prompt_file", f"/dev/fd/{read}")
    assert text.count_tokens(TOKENIZER) is None
    assert b"".join(text.blocks()) == b"abc"
    os.close(read)


def test_characters_may_be_cut_between_blocks():
    data = "a\N{EURO SIGN}b".encode()
    assert b"".join(checked([data[i : i + 1] for i in range(len(data))], "x")) == data


def test_the_number_of_tokens_is_judged_by_the_beginning(tmp_path):
    class Pairs:
        def encode_piece(self, piece, first):
            return piece[::2]

    (tmp_path / "a").write_bytes(b"ab" * 50_000)
    (tmp_path / "b").write_bytes(b"ab" * 10)
    assert TextFiles((tmp_path / "a", tmp_path / "b")).count_tokens(Pairs()) == 50_010
