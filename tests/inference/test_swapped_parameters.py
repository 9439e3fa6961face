"""Engines hold no parameters: score, embed and predict with others compile nothing."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from small_folders import add_tokenizer, copied

import t5lite

pytest.importorskip("tokenizers")

TASKS = {
    "score": ("gpt2", ("[CLS]",)),
    "embed": ("bert", ("[CLS]", "[SEP]")),
    "predict": ("bert_classes", ("[CLS]", "[SEP]")),
}


@contextlib.contextmanager
def compilations():
    """Yields a list that gets an entry for each program that XLA compiles."""
    events = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def numbers(outcome):
    if hasattr(outcome, "token_log_probabilities"):
        return outcome.token_log_probabilities
    return np.asarray(outcome if isinstance(outcome, np.ndarray) else outcome.probability)


@pytest.mark.parametrize("task", TASKS)
def test_other_parameters_compile_nothing(task, tmp_path):
    case, ends = TASKS[task]
    folder = add_tokenizer(copied(case, tmp_path / case), ends=ends)
    loaded = t5lite.load(folder, dtype="float32", devices=jax.devices()[:1])
    run = lambda model: numbers(getattr(model, task)(["a cat"])[0])  # noqa: E731
    other = dataclasses.replace(loaded, params=jax.tree.map(lambda leaf: leaf * 0.5, loaded.params))
    with compilations() as first:
        before = run(loaded)
    with compilations() as second:
        after = run(other)
    assert first
    assert second == []
    assert not np.allclose(before, after)
    np.testing.assert_array_equal(run(loaded), before)
