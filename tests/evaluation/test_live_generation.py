"""Callbacks generate with the engine: its tokens, on sharded training parameters, compiled once."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from tiny_runs import FAST, SPEC

from t5lite.data import Bytes
from t5lite.evaluation import Samples, SpanFilling, rows
from t5lite.inference import Engine, Loaded
from t5lite.interop import Description
from t5lite.models import Model, override
from t5lite.objectives import CausalLM, Seq2Seq, bind
from t5lite.parallel import Layout, make_mesh, shardings

SPECS = {
    "encoder_decoder": override(SPEC, {"vocab": 384, "*.dropout_rate": 0.0}),
    "decoder": override(
        "gpt_nano", {"vocab": 384, "embed": 16, "decoder.num_layers": 2, "*.dropout_rate": 0.0}
    ),
}
VOCABULARY = Bytes(num_sentinels=4)  # 263 ids: the other embeddings are padding
TEXTS = ["a cat sat", "dogs", "it is the end", "so", "on and on"]
LAYOUT = Layout(mesh={"data": 2, "fsdp": 4}, compiler_options={"cpu": FAST})


class Data:
    batch_size, lengths = 8, {"inputs": 24, "targets": 12}

    def __init__(self, examples):
        self.held_out = examples

    def vocabulary(self):
        return VOCABULARY

    def examples(self, objective, *, split, count, seed):
        return self.held_out[:count]


class Run:
    """What callbacks see of a run, whose state is its parameters."""

    def __init__(self, topology, objective, examples, layout=LAYOUT, devices=None):
        self.model, self.data = Model(SPECS[topology]), Data(examples)
        self.objective = bind(objective, self.model)
        self.layout, self.mesh = layout, make_mesh(layout, devices)
        self.said = []
        self.say = self.said.append
        self.writers = type("Writers", (), {"text": lambda *_: None})()

    def params(self, state):
        return state

    def init(self, seed):
        params = jax.device_get(jax.jit(self.model.init)(jax.random.key(seed)))
        rng = np.random.default_rng(seed)  # padding rows are the most probable ones
        if "lm_head" in params:
            params["lm_head"] = jax.tree.map(lambda leaf: leaf + 0, params["lm_head"])
        params = jax.tree.map(
            lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype("f"), params
        )
        placed = shardings(self.model.axes(), self.layout.parameters, self.mesh)
        return jax.device_put(params, placed)


def pairs():
    encode, eos = VOCABULARY.encode, VOCABULARY.eos_id
    ids = lambda text: np.array([*encode(text), eos], np.int32)  # noqa: E731
    return [{"inputs": ids(a), "targets": ids(b)} for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]


@contextlib.contextmanager
def compilations():
    """Counts the programs that XLA compiles."""
    events = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def loaded_of(run, params):
    engine = Engine(run.model, VOCABULARY, run.layout, run.mesh)
    return Loaded(engine, params, Description(run.model.spec, VOCABULARY))


@pytest.mark.parametrize("topology", SPECS)
def test_callbacks_generation_is_the_engines(topology):
    """Token for token, on parameters sharded over eight devices, whichever they are."""
    examples = pairs()
    if topology == "decoder":
        examples = [{"targets": np.concatenate([x["inputs"][:-1], x["targets"]])} for x in examples]
    run = Run(topology, Seq2Seq() if topology == "encoder_decoder" else CausalLM(), examples)
    params = run.init(0)
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    divided = [rows.prompt_of(example, prompt_length=4) for example in examples]
    answers = rows.answers(
        run, params, [prompt for prompt, _ in divided], max_new_tokens=9, batch_size=2
    )
    alone = Run(topology, run.objective, examples, Layout(), jax.devices()[:1])
    loaded = loaded_of(alone, jax.device_put(jax.device_get(params), alone.mesh.devices.flat[0]))
    reader = loaded.reader()
    for (prompt, _), answer in zip(divided, answers, strict=True):
        text = VOCABULARY.decode(prompt)
        (expected,) = loaded.answers([text], max_new_tokens=9)[0]
        assert reader.frame(VOCABULARY.encode(text)) == prompt.tolist()
        assert answer.tokens.tolist() == expected.tokens.tolist()
        assert answer.log_probability == pytest.approx(expected.log_probability, abs=1e-3)
        assert max(answer.tokens) < VOCABULARY.size  # not an embedding's padding
    assert len({answer.tokens.tobytes() for answer in answers}) > 1


def test_an_evaluation_compiles_nothing_that_an_earlier_one_has():
    samples, span_filling = Samples(every=1, batch_size=4), SpanFilling(every=1, num_sentences=1)
    run = Run("encoder_decoder", Seq2Seq(), spans())
    with compilations() as first:
        metrics = [callback(run, run.init(1), step=1) for callback in (samples, span_filling)]
    params = run.init(2)
    with compilations() as second:
        others = [callback(run, params, step=2) for callback in (samples, span_filling)]
    assert first
    assert second == []
    assert metrics[1]["span_filling/loss"] != others[1]["span_filling/loss"]


def spans():
    """Returns examples of span corruption."""
    encode, sentinel, eos = VOCABULARY.encode, VOCABULARY.sentinel, VOCABULARY.eos_id
    return [
        {
            "inputs": np.array([*encode(text), sentinel(0), eos], np.int32),
            "targets": np.array([sentinel(0), *encode(text[::-1]), eos], np.int32),
        }
        for text in TEXTS
    ]


def test_span_filling_measures_as_training_does():
    """The loss over the words of the targets, from the objective's own batch."""
    run = Run("encoder_decoder", Seq2Seq(), spans())
    params = run.init(3)
    scores = rows.target_scores(run, params, run.data.held_out, batch_size=2)
    for example, score in zip(run.data.held_out, scores, strict=True):
        batch = {
            "encoder_input_tokens": example["inputs"][None],
            "decoder_input_tokens": np.array([[0, *example["targets"][:-1]]], np.int32),
        }
        with jax.set_mesh(run.mesh):
            hidden, _ = run.model.hidden(params, batch)
            logits = jax.nn.log_softmax(run.model.logits(params, hidden))[0]
        expected = np.asarray(logits)[np.arange(len(score)), example["targets"]]
        np.testing.assert_allclose(score, expected, atol=1e-4)


def test_numbers_that_are_not_finite_end_no_run():
    run = Run("encoder_decoder", Seq2Seq(), pairs())
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), run.init(0))
    assert Samples(every=1)(run, broken, step=1) == {"samples/exact_match": 0.0}
    (score, *_) = rows.target_scores(run, broken, run.data.held_out)
    assert np.isnan(score).all()


def test_a_batch_size_of_its_own():
    run = Run("encoder_decoder", Seq2Seq(), pairs())
    params = run.init(0)
    alone = rows.answers(
        run, params, [e["inputs"] for e in pairs()], max_new_tokens=5, batch_size=1
    )
    for size in (3, 64):
        others = rows.answers(
            run, params, [e["inputs"] for e in pairs()], max_new_tokens=5, batch_size=size
        )
        for one, other in zip(alone, others, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
    assert dataclasses.replace(Samples(every=1), batch_size=3).batch_size == 3
