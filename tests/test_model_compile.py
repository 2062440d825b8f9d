"""model.compile: the blocks are traced around the operators, and give the same."""

from golden_data import assert_equal
from hard import hard_config, hard_model, hard_tokens


def loss_and_gradients(model, tokens):
    model.zero_grad()
    nll, _, _ = model.loss(tokens, tokens)
    nll.backward()
    return {"nll": nll.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}


def test_compiled_blocks_give_the_same_loss_and_gradients():
    model = hard_model(hard_config())
    tokens = hard_tokens(model.config, 2, 70)
    want = loss_and_gradients(model, tokens)
    for block in model.layers:
        # All of tracing and of the joint graph; generating code for it takes a minute.
        block.compile(backend="aot_eager")
    for name, value in loss_and_gradients(model, tokens).items():
        assert_equal(value, want[name], name=name)
