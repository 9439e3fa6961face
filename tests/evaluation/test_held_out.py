import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.data.packing import pad
from t5lite.data.validation import filled_up
from t5lite.errors import InputError
from t5lite.evaluation import HeldOut
from t5lite.objectives import Objective, Seq2Seq, encoder_decoder_batch
from t5lite.rows import RowSpec

EXAMPLES = [  # inputs, targets
    ([3, 4, 6, 1], [3, 1]),
    ([7, 1], [9, 10, 1]),
    ([8, 9, 1], [4, 5, 6, 1]),
    ([5, 1], [1]),
]


def unpacked(examples, rows=8):
    names = ("inputs", "targets")
    examples = [dict(zip(names, map(np.array, example), strict=True)) for example in examples]
    padded = pad(examples, {"inputs": RowSpec(10), "targets": RowSpec(8)})
    return encoder_decoder_batch({name: filled_up(each, rows) for name, each in padded.items()})


def packed(pairs, rows=8):
    batch = {}
    for side, name, length in (0, "inputs", 10), (1, "targets", 8):
        for part in ("", "_segment_ids"):
            batch[name + part] = np.zeros((rows, length), np.int32)
        for row, examples in enumerate(pairs):
            start = 0
            for segment, example in enumerate(examples, start=1):
                span = slice(start, start + len(example[side]))
                batch[name][row, span] = example[side]
                batch[name + "_segment_ids"][row, span] = segment
                start = span.stop
    return encoder_decoder_batch(batch)


def by_hand(params, examples):
    """Mean negative log likelihood and share of right tokens, token by token in numpy."""
    encoder, decoder = (np.asarray(params[side], np.float64) for side in ("encoder", "decoder"))
    losses, right = [], []
    for inputs, targets in examples:
        for given, target in zip([0, *targets], targets, strict=False):
            logits = decoder[given] + encoder[inputs].mean(axis=0)
            losses.append(np.log(np.exp(logits).sum()) - logits[target])
            right.append(np.argmax(logits) == target)
    return np.mean(losses), np.mean(right)


def test_numbers_are_those_of_every_target_token(fake_run, params):
    batches = [unpacked(EXAMPLES[:3]), unpacked(EXAMPLES[3:])]
    run = fake_run(batches=batches, objective=Seq2Seq(z_loss=0.0))
    metrics = HeldOut(every=5)(run, params, step=5)
    loss, accuracy = by_hand(params, EXAMPLES)
    np.testing.assert_allclose(metrics["held_out/loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["held_out/accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics["held_out/perplexity"], np.exp(loss), rtol=1e-5)
    assert all(type(value) is float for value in metrics.values())


def test_packed_equals_unpacked(fake_run, params):
    apart = fake_run(batches=[unpacked(EXAMPLES)])
    together = fake_run(batches=[packed([EXAMPLES[:2], EXAMPLES[2:]])])
    one, other = (HeldOut(every=1)(run, params, step=1) for run in (apart, together))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


def test_each_part_of_a_mixture_has_its_loss(fake_run, params):
    parts = {"short": EXAMPLES[:2], "long": EXAMPLES[2:]}
    batches = {name: [unpacked(examples)] for name, examples in parts.items()}
    run = fake_run(batches=[unpacked(EXAMPLES)], parts=batches, objective=Seq2Seq(z_loss=0.0))
    metrics = HeldOut(every=1)(run, params, step=1)
    for name, examples in [("", EXAMPLES), *((f"{part}/", rows) for part, rows in parts.items())]:
        loss, _ = by_hand(params, examples)
        np.testing.assert_allclose(metrics[f"held_out/{name}loss"], loss, rtol=1e-6)


def test_compiles_once_and_again_only_for_another_run(fake_run, params):
    held_out = HeldOut(every=1)
    run = fake_run(batches=[unpacked(EXAMPLES)] * 3)
    first = held_out(run, params, step=1)
    assert held_out(run, params, step=2) == first
    assert run.traces == 1
    changed = held_out(run, jax.tree.map(lambda x: 2 * x, params), step=3)
    assert changed["held_out/loss"] != first["held_out/loss"]
    assert run.traces == 1
    other = fake_run(batches=[unpacked(EXAMPLES)], objective=Seq2Seq(z_loss=0.0))
    assert held_out(other, params, step=1)["held_out/z_loss"] == 0.0
    assert other.traces == 1


def test_max_batches_and_prefix(fake_run, params):
    run = fake_run(batches=[unpacked(EXAMPLES[:1]), unpacked(EXAMPLES[1:])])
    metrics = HeldOut(every=1, max_batches=1, prefix="quick")(run, params, step=1)
    np.testing.assert_allclose(metrics["quick/loss"], by_hand(params, EXAMPLES[:1])[0], rtol=1e-6)


class TwoTerms(Objective):
    """A term divided by a weight, and one averaged over batches."""

    def weights(self, batch):
        return {"fit": batch["x"].sum()}

    def loss(self, model, params, batch, *, frozen=None, rngs=None, train=False):
        total = batch["x"].sum()
        terms = {"fit": (total * params, 1.0), "balance": (batch["x"].max(), 0.5)}
        return terms, {"size": (total, jnp.float32(2))}


def test_terms_add_up_to_the_loss(fake_run):
    batches = [{"x": np.full(8, value, np.float32)} for value in (1, 3)]
    run = fake_run(batches=batches, objective=TwoTerms(), model=object())
    metrics = HeldOut(every=1)(run, jnp.float32(7), step=1)
    assert metrics == {
        "held_out/fit": 7.0,  # (8·7 + 24·7) / (8 + 24)
        "held_out/balance": 1.0,  # (0.5·1 + 0.5·3) / 2
        "held_out/loss": 8.0,
        "held_out/size": 8.0,  # (8 + 24) / (2 + 2)
    }


@pytest.mark.parametrize("batches", [[], [unpacked([])]])
def test_nothing_held_out_is_said(fake_run, params, batches):
    with pytest.raises(InputError, match="validation split gave no targets"):
        HeldOut(every=1)(fake_run(batches=batches), params, step=1)


def test_a_hopeless_loss_overflows_nothing(fake_run, params):
    run = fake_run(batches=[unpacked(EXAMPLES)])
    metrics = HeldOut(every=1)(run, jax.tree.map(lambda x: 1e4 * x, params), step=1)
    assert metrics["held_out/loss"] > 1000
    assert np.isfinite(metrics["held_out/perplexity"])


def test_every_process_comes_to_the_same_verdict_before_the_first_step(fake_run, monkeypatch):
    """Of several processes one may have nothing but padding in its part of the batch."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    HeldOut(every=1).check(fake_run(batches=[unpacked(EXAMPLES)]))
    with pytest.raises(InputError, match="gave no example"):
        HeldOut(every=1).check(fake_run(batches=[unpacked([])]))


def test_what_was_never_weighed_is_not_a_number(fake_run):
    class Tags(TwoTerms):
        def loss(self, model, params, batch, *, frozen=None, rngs=None, train=False):
            terms, _ = super().loss(model, params, batch)
            return terms, {"precision": (jnp.float32(0), jnp.float32(0))}

    run = fake_run(batches=[{"x": np.ones(8, np.float32)}], objective=Tags(), model=object())
    assert np.isnan(HeldOut(every=1)(run, jnp.float32(7), step=1)["held_out/precision"])
