import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.evaluation import SpanFilling
from t5lite.evaluation.span_filling import (
    exchange_inputs,
    num_exact,
    ordinary,
    sentence_of,
    unigram_cross_entropy,
)

S0, S1, S2 = 19, 18, 17


def example(inputs, targets):
    return {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32)}


HELD_OUT = [
    example([3, S0, 7, 3, S1, 1], [S0, 4, 5, S1, 9, 1]),
    example([3, 11, S0, 1], [S0, 12, 13, 1]),
    example([S0, 11, 10, S1, 15, 1], [S0, 3, 4, S1, 14, 1]),
]
TRAIN = [
    example([3, 4, S0, 7, 3, 9, 1], [S0, 6, 1]),
    example([3, 4, S0, 13, 1], [S0, 12, 10, 1]),
]


def loss_by_hand(params, examples):
    """Mean over the targets' words, token by token in numpy."""
    encoder, decoder = (np.asarray(params[side], np.float64) for side in ("encoder", "decoder"))
    losses = []
    for row in examples:
        for given, target in zip([0, *row["targets"]], row["targets"], strict=False):
            if 1 < target < 16:
                logits = decoder[given] + encoder[row["inputs"]].mean(axis=0)
                losses.append(np.log(np.exp(logits).sum()) - logits[target])
    return np.mean(losses), len(losses)


def test_numbers_are_those_of_the_masked_words(fake_run, params):
    run = fake_run(splits={"validation": HELD_OUT, "train": TRAIN})
    metrics = SpanFilling(every=1, num_train_examples=2, seed=3)(run, params, step=7)
    loss, count = loss_by_hand(params, HELD_OUT)
    assert count == 8
    np.testing.assert_allclose(metrics["span_filling/loss"], loss, rtol=1e-6)
    others = [HELD_OUT[1], HELD_OUT[2], HELD_OUT[0]]
    swapped = [
        {**row, "inputs": other["inputs"]} for row, other in zip(HELD_OUT, others, strict=True)
    ]
    np.testing.assert_allclose(
        metrics["span_filling/shuffled_inputs"], loss_by_hand(params, swapped)[0], rtol=1e-6
    )
    # How often TRAIN has each ordinary id; each of the 14 gets one more.
    seen = {3: 3, 4: 2, 7: 1, 9: 1, 13: 1, 6: 1, 12: 1, 10: 1}
    total = sum(seen.values()) + 14
    unigram = np.mean([-np.log((seen.get(t, 0) + 1) / total) for t in (4, 5, 9, 12, 13, 3, 4, 14)])
    np.testing.assert_allclose(metrics["span_filling/unigram"], unigram, rtol=1e-12)
    np.testing.assert_allclose(metrics["span_filling/margin"], unigram - loss, rtol=1e-5)
    assert run.data.asked == [("validation", 256, 3), ("train", 2, 3)]


def test_more_examples_than_a_batch_holds(fake_run, params):
    held_out = HELD_OUT * 4
    run = fake_run(splits={"validation": held_out, "train": TRAIN})
    metrics = SpanFilling(every=1, num_sentences=10)(run, params, step=1)
    loss, _ = loss_by_hand(params, HELD_OUT)
    np.testing.assert_allclose(metrics["span_filling/loss"], loss, rtol=1e-6)
    assert f"\n{10:>3}  " in run.said[0]
    assert run.said[0].count("\n\n") == 11


def test_prepares_and_compiles_once(fake_run, params):
    run = fake_run(splits={"validation": HELD_OUT, "train": TRAIN})
    span_filling = SpanFilling(every=1)
    first = span_filling(run, params, step=1)
    traces = run.model.traces
    assert span_filling(run, params, step=2) == first
    assert run.model.traces == traces
    assert len(run.data.asked) == 2


def test_inputs_that_are_not_read_make_no_difference(fake_run, params):
    run = fake_run(splits={"validation": HELD_OUT, "train": TRAIN})
    blind = {**params, "encoder": jnp.zeros((20, 20))}
    metrics = SpanFilling(every=1)(run, blind, step=1)
    assert metrics["span_filling/shuffled_inputs"] == metrics["span_filling/loss"]
    assert metrics["span_filling/exact_match"] == metrics["span_filling/exact_match_shuffled"]


def cats_unless_dog():
    """ "dog" in the inputs makes the model say "ran." behind the first sentinel, else "cats"."""
    decoder = np.zeros((20, 20), np.float32)
    for given, then in (0, S0), (4, 5), (5, S1), (S1, 1), (12, 13), (13, 1):
        decoder[given, then] = 20
    decoder[S0, 4] = 5
    encoder = np.zeros((20, 20), np.float32)
    encoder[11, 12] = 4 * 6.0  # of the mean over four inputs: 6, against cat's 5
    return {"decoder": jnp.asarray(decoder), "encoder": jnp.asarray(encoder)}


def test_what_is_said_is_what_the_model_does(fake_run):
    run = fake_run(splits={"validation": HELD_OUT, "train": TRAIN})
    params = cats_unless_dog()
    metrics = SpanFilling(every=1, num_sentences=2)(run, params, step=1200)
    (text,) = run.said
    assert run.written == [(1200, "span_filling/sentences", text)]
    *sentences, number, losses = [line for line in text.splitlines()[1:] if line]
    assert [line.strip() for line in sentences] == [
        "1  the [cats ✓] on the [nothing ✗ mat]",
        "2  the dog [ran. ✓]",
    ]
    # Of the third, "the cat" and "red", neither; of others' inputs comes nothing that is right.
    assert number == (
        "2 of 5 held-out gaps filled in exactly (40.0%); with another text's input 0.0%"
    )
    assert losses.startswith(f"  nats a token: {metrics['span_filling/loss']:.2f}; ")
    assert metrics["span_filling/exact_match"] == 2 / 5
    assert metrics["span_filling/exact_match_shuffled"] == 0


def test_ordinary_leaves_out_padding_eos_and_sentinels(words):
    np.testing.assert_array_equal(np.flatnonzero(ordinary(np.arange(20), words)), np.arange(2, 16))


def test_unigrams_smooth_what_was_never_seen(words):
    held_out = [example([3, 1], [S0, 8, 1])]
    nothing = [example([1], [1])]
    np.testing.assert_allclose(unigram_cross_entropy(nothing, held_out, words), np.log(14))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_exchanged_inputs_are_never_the_own(count):
    examples = [example([number], [number]) for number in range(count)]
    exchanged = exchange_inputs(examples)
    assert sorted(int(row["inputs"][0]) for row in exchanged) == list(range(count))
    assert all(row["inputs"][0] != row["targets"][0] for row in exchanged)


def test_a_model_that_loses_the_thread(words):
    def padded(ids):
        return np.array(ids + [0] * (8 - len(ids)), np.int32)

    row = {
        "inputs": padded([3, S0, S1, 7, S2, 1]),
        "targets": padded([S0, 5, S1, 4, S2, 9, 9, 1]),
        "answer": padded([8, S1, 15, S1, 14, S0, 1]),
    }
    sentence = sentence_of(row, words)
    assert sentence.texts == [" the", "", " on", ""]
    assert [span.truth for span in sentence.spans] == ["s", " cat", " mat mat"]
    assert [span.filled for span in sentence.spans] == ["", " hat", None]
    assert num_exact([row], words) == 0


def test_a_gap_is_exact_or_not_by_its_whole_text(words):
    targets = example([1], [S0, 4, 5, S1, 9, 1])["targets"]

    def count(*answer):
        return num_exact([{"targets": targets, "answer": np.array(answer, np.int32)}], words)

    assert count(S0, 4, 5, S1, 9, 1) == 2
    assert count(S1, 9, S0, 4, 5, 1) == 2  # in any order
    assert count(S0, 4, S1, 9, 9, 1) == 0
    assert count(S0, 4, 5, 1, S1, 9) == 1  # what follows the end is not said
    assert count(4, 5, 9, 1) == 0


class TargetsOnly:
    features = ("targets",)


def test_bad_requests_say_what_to_do(fake_run, params):
    def fails(match, **settings):
        with pytest.raises(InputError, match=match):
            SpanFilling(every=1)(fake_run(**settings), params, step=1)

    fails("vocabulary with sentinels", words=None)
    fails("inputs and targets; TargetsOnly has targets, and the model", objective=TargetsOnly())
    fails("validation split has no example", splits={"validation": [], "train": TRAIN})
    fails("at least 2", splits={"validation": HELD_OUT[:1], "train": TRAIN})
