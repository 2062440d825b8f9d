"""scripts/serve.py streams what the model writes."""

import json
import threading
import urllib.error
import urllib.request

import pytest
import torch
from serve import server

from inference_helpers import TOKENIZER, byte_model, reader


@pytest.fixture
def address():
    with server(byte_model(torch.float32), TOKENIZER, port=0) as serving:
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
        ("abc", "length"),
        ({"prompt": 7}, "not iterable"),
    ),
    ids=("temperature", "unknown", "no object", "no text"),
)
def test_a_mistake_is_answered_in_a_sentence_and_the_next_one_served(address, content, message):
    with pytest.raises(urllib.error.HTTPError, match=message) as error:
        ask(address, content)
    assert error.value.code == 400
    assert ask(address, {"prompt": "abc", "max_new_tokens": 2})
