"""Compiled layers against plain ones; run by test_grad_cache.py in a process of its own."""

from functools import partial

import torch
from test_grad_cache import batch_of, gradient_of, plain_backward, take_gradients
from training import recipe, tiny

from nvembed.model.compiled import compile_layers
from nvembed.train.adapt import adapt
from nvembed.train.grad_cache import backward, embed

settings = recipe(adapter={"dropout": 0.0}).adapter
(model, tokenizer), (plain, _) = tiny(), tiny()
adapt(model, settings, seed=1)
adapt(plain, settings, seed=1)
compile_layers(model)
for max_tokens in (80, 50):  # batches of other sizes
    plan, work = batch_of(tokenizer, max_tokens)
    expected = plain_backward(plain, plan, work, seed=7)
    backward(partial(embed, model), work, partial(gradient_of, plan), seed=7, graph_tokens=100)
    for name, value in take_gradients(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
