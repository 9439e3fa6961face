import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.evaluation import Samples
from t5lite.evaluation.samples import Sample, format_samples


def example(inputs, targets):
    return {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32)}


@pytest.fixture
def next_word():
    """Answers with the word after the input's, then EOS."""
    decoder = np.zeros((20, 20), np.float32)
    decoder[2:, 1] = 10
    encoder = np.zeros((20, 20), np.float32)
    encoder[np.arange(2, 15), np.arange(3, 16)] = 5
    return {"decoder": jnp.asarray(decoder), "encoder": jnp.asarray(encoder)}


HELD_OUT = [
    example([3, 1], [4, 1]),
    example([8, 1], [9, 1]),
    example([10, 1], [12, 13, 1]),
    example([12, 1], [13, 1]),
] * 3


def test_counts_exact_matches_and_shows_some(fake_run, next_word):
    run = fake_run(splits={"validation": HELD_OUT})
    samples = Samples(every=1, count=3, seed=5)
    assert samples(run, next_word, step=40) == {"samples/exact_match": 0.75}
    assert run.data.asked == [("validation", 64, 5)]
    (text,) = run.said
    assert run.written == [(40, "samples/samples", text)]
    assert text.splitlines() == [
        "samples at step 40: 75.0% of 12 answers match exactly",
        "  1  input   the",
        "     target  cat",
        "   = model   cat",
        "  2  input   a",
        "     target  mat",
        "   = model   mat",
        "  3  input   and",
        "     target  ran.",
        "   ≠ model   dog",
    ]
    samples(run, next_word, step=41)
    assert run.traces == 1
    assert len(run.data.asked) == 1


def test_ids_are_shown_where_there_is_no_vocabulary(fake_run, next_word):
    run = fake_run(splits={"validation": HELD_OUT}, words=None)
    assert Samples(every=1, num_examples=2)(run, next_word, step=1) == {"samples/exact_match": 0.75}
    assert "     target  12 13\n" in run.said[0]


def test_long_texts_fit_the_terminal():
    words = "word " * 200
    text = format_samples(1, [Sample(words, words, "")], exact_match=0.0, total=1)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) == 5
    assert "…" in text
    assert lines[-1] == "   ≠ model"


class TargetsOnly:
    features = ("targets",)


def test_bad_requests_say_what_to_do(fake_run, next_word):
    with pytest.raises(InputError, match="Samples needs an objective with inputs and targets"):
        Samples(every=1)(fake_run(objective=TargetsOnly()), next_word, step=1)
    with pytest.raises(InputError, match="validation split has no example"):
        Samples(every=1)(fake_run(splits={"validation": []}), next_word, step=1)
