"""scripts/serve.py streams what the model writes."""

import json
import re
import runpy
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
import serve
import torch

from inference_helpers import TOKENIZER, byte_model, reader
from runs import ENVIRONMENT


@pytest.fixture
def address():
    with serve.server(byte_model(torch.float32), TOKENIZER, port=0) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def ask(address, content):
    return urllib.request.urlopen(address, json.dumps(content).encode(), timeout=60).read()


def test_it_writes_what_our_own_reader_does(address):
    wanted = "".join(reader(byte_model(torch.float32), "abc").generate(12, temperature=0))
    asked = {"prompt": "abc", "max_new_tokens": 12, "temperature": 0}
    assert ask(address, asked).decode() == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    (
        ({"temperature": -1}, "temperature=-1: must be 0"),
        ({"nonsense": 1}, "nonsense"),
        ({"\u6f22": 1}, "unexpected keyword"),
        ({"seed": "x"}, "seed|str"),
        ("abc", "must be a JSON object"),
        ({"prompt": ["a", "b"]}, "its prompt a text"),
    ),
    ids=("temperature", "unknown", "no latin", "seed", "no object", "no text"),
)
def test_a_mistake_is_answered_in_a_sentence_and_the_next_one_served(address, content, message):
    with pytest.raises(urllib.error.HTTPError, match=message) as error:
        ask(address, content)
    assert error.value.code == 400
    assert ask(address, {"prompt": "abc", "max_new_tokens": 2})


def test_a_client_that_leaves_keeps_nobody_waiting(address, capfd):
    host, port = address.removeprefix("http://").split(":")
    asked = json.dumps({"max_new_tokens": 3000, "temperature": 1}).encode()
    for length, body in ((len(asked), asked), (-1, b"")):
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (length, body))
            gone.recv(20)
            # Closed at once, with what is on its way thrown away.
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(address, {"prompt": "abc", "max_new_tokens": 2})
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("port", ("abc", "-1", "65536"))
def test_a_port_that_is_none_is_refused_in_a_sentence(port, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serve.py", "last", port])
    with pytest.raises(SystemExit):
        runpy.run_path(serve.__file__, run_name="__main__")
    assert f"port={port}: must be a whole number, 0" in capsys.readouterr().err


def test_a_mistake_is_told_before_torch_is_imported():
    command = [sys.executable, "-X", "importtime", serve.__file__, "last", "abc"]
    said = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT).stderr
    assert "port=abc" in said
    assert not re.search(r"\| +torch$", said, re.MULTILINE)
