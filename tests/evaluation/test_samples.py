import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bag_model import BagCache, spec

from t5lite.errors import InputError
from t5lite.evaluation import Samples
from t5lite.evaluation.samples import Sample, format_samples
from t5lite.objectives import CausalLM, PrefixLM, Seq2Seq


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
    traces = run.model.traces
    samples(run, next_word, step=41)
    assert run.model.traces == traces  # compiled once
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


class OneWay:
    """A decoder that writes the number after the last one, up to 16."""

    topology, heads = "decoder", {"lm": None}
    start_id = 0
    spec = spec("decoder")

    @property
    def unstacked(self):
        return self

    def start(self, params, batch, *, max_length, draft_length=0):
        assert max_length >= batch["decoder_input_tokens"].shape[1]
        self.both_ways = "decoder_causal_attention" in batch
        return BagCache(batch["decoder_lengths"] - 1, jnp.zeros(0))

    def extend(self, params, tokens, cache):
        following = jnp.where(tokens < 16, tokens + 1, 1)
        return jax.nn.one_hot(following, 20), cache


@pytest.mark.parametrize(
    ("objective", "mark"), [(PrefixLM(), True), (Seq2Seq(), True), (CausalLM(), False)]
)
def test_a_decoder_continues_its_prefix_or_the_beginning_of_a_text(fake_run, objective, mark):
    text = np.arange(5, 15, dtype=np.int32)
    example = {"targets": text}
    if mark:
        example["prefix"] = (text < 8).astype(np.int32)
    other = {name: values[:4] for name, values in example.items()}
    model = OneWay()
    held_out = {"validation": [example, other]}
    run = fake_run(splits=held_out, objective=objective, model=model, words=None)
    # The other's text ends first, and nothing tells the model so.
    assert Samples(every=1, prompt_length=3)(run, {}, step=1) == {"samples/exact_match": 0.5}
    assert model.both_ways == isinstance(objective, PrefixLM)
    lines = run.said[0].splitlines()
    given = 3 if mark else 2
    assert lines[1].split()[1:] == ["input", "5", "6", "7"]
    assert lines[3].split()[-7:] == [str(number) for number in range(8, 15)]
    assert len(lines[4].split()) == 2 + given


def test_bad_requests_say_what_to_do(fake_run, next_word):
    encoder = types.SimpleNamespace(topology="encoder")
    with pytest.raises(InputError, match="encoders generate no text; remove Samples"):
        Samples(every=1).check(fake_run(model=encoder))
    with pytest.raises(InputError, match="validation split has no example"):
        Samples(every=1)(fake_run(splits={"validation": []}), next_word, step=1)
