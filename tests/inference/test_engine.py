"""The engine: no parameters inside, requests that enter running batches, functions that export."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generation import SPECS, TEXTS, VOCABULARY, make

from t5lite.errors import InputError
from t5lite.inference import Engine, Options, Reader, Request, Rules
from t5lite.inference.functions import decode, functions_of, prefill
from t5lite.inference.sizes import prompts_of
from t5lite.models import Model
from t5lite.parallel import Layout, make_mesh

COMPILED = "/jax/core/compile/backend_compile_duration"
compilations: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compilations.append(event) if event == COMPILED else None
)
SAMPLED = {"temperature": 0.9, "top_p": 0.95}
ROWS, LENGTH = 4, 64


@pytest.fixture(scope="module")
def writers():
    return {topology: make(topology) for topology in ("encoder_decoder", "decoder")}


@pytest.fixture(scope="module")
def decoder(writers):
    return writers["decoder"]


def count(run):
    """Returns what a function returns, and how many programs it compiled."""
    before = len(compilations)
    return run(), len(compilations) - before


def request(loaded, text, *, number=0, prompt=None, **options):
    return Request.from_text(text, loaded.reader(prompt=prompt), Options(**options), number=number)


# Parameters.


def test_swapped_parameters_compile_nothing(decoder):
    other = jax.tree.map(lambda leaf: leaf * 1.25, decoder.params)
    requests = [request(decoder, text, max_new_tokens=9) for text in TEXTS]
    first = decoder.engine.generate(decoder.params, requests)
    second, compiled = count(lambda: decoder.engine.generate(other, requests))
    assert compiled == 0
    assert [a[0].text for a in first] != [a[0].text for a in second]
    swapped = dataclasses.replace(decoder, params=other)
    again, compiled = count(lambda: swapped.generate(TEXTS, max_new_tokens=9))
    assert compiled == 0
    assert again == [answers[0].text for answers in second]
    assert swapped.generate(TEXTS, max_new_tokens=9) == again
    twin = Engine(decoder.model, None, Layout(), decoder.mesh)
    assert twin.functions is decoder.engine.functions
    assert hash(twin) == hash(decoder.engine)


def test_parameters_are_prepared_once(decoder):
    engine = decoder.engine
    prepared = engine.prepare(decoder.params)
    assert engine.prepare(prepared) is prepared
    requests = [request(decoder, "a cat", max_new_tokens=5)]
    (one,), (other,) = (
        engine.generate(params, requests)[0] for params in (prepared, decoder.params)
    )
    np.testing.assert_array_equal(one.tokens, other.tokens)
    half = engine.prepare(decoder.params, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_parameters_of_another_layout_are_resharded(decoder):
    layout = Layout(mesh={"data": 2, "tensor": 4})
    engine = dataclasses.replace(decoder.engine, layout=layout, mesh=make_mesh(layout))
    requests = [request(decoder, text, max_new_tokens=6) for text in TEXTS]
    params = engine.prepare(decoder.params)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    for one, other in zip(
        engine.generate(params, requests),
        decoder.engine.generate(decoder.params, requests),
        strict=True,
    ):
        np.testing.assert_array_equal(one[0].tokens, other[0].tokens)


# Settings of one structure.


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
@pytest.mark.light("decoder")
def test_a_request_of_any_options_compiles_nothing(writers, topology):
    loaded = writers[topology]
    loaded.generate(["a cat"], max_new_tokens=8)
    for options in (
        SAMPLED | {"top_k": 5, "min_p": 0.1, "typical_p": 0.9, "seed": 3},
        {"choices": ["yes", "no", "maybe"]},
        {"stop": ["ab", "\n"]},
        {"logit_bias": {"e": 4.0, 40: -2.0}, "banned": ["a"]},
        {"forced": "so "},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
    ):
        _, compiled = count(lambda o=options: loaded.generate(["a dog"], max_new_tokens=8, **o))
        assert compiled == 0, options


def test_rows_with_and_without_choices_or_draws_share_a_batch(decoder, monkeypatch):
    options = {
        "choices": [["yes", "no"], [], [], []],
        "temperature": [0.0, 0.9, 0.0, 0.7],
        "stop": [[], [], ["a"], []],
        "no_repeat_ngram_size": [None, 2, None, None],
    }
    batches = []
    functions = decoder.engine.functions

    def counted(params, batch, **sizes):
        batches.append(len(batch["seeds"]))
        return functions.prefill(params, batch, **sizes)

    monkeypatch.setattr(
        Engine, "functions", property(lambda engine: functions._replace(prefill=counted))
    )
    together = decoder.answers(TEXTS, max_new_tokens=8, **options)
    assert batches == [4]
    assert together[0][0].text in ("yes", "no")
    for row, text in enumerate(TEXTS):
        own = {name: values[row] for name, values in options.items()}
        alone = decoder.answers(["x"] * row + [text], max_new_tokens=8, **own)[-1]
        np.testing.assert_array_equal(together[row][0].tokens, alone[0].tokens)


def test_biased_and_frequent_tokens(decoder):
    (plain,) = decoder.generate(["a cat"], max_new_tokens=8)
    target = VOCABULARY.encode("q")[0]
    assert decoder.generate(["a cat"], max_new_tokens=8, logit_bias={"q": 1e3}) == ["q" * 8]
    rising = decoder.generate(
        ["a cat"], max_new_tokens=6, logit_bias={"q": 1e3, "z": 999.5}, frequency_penalty=1.0
    )
    assert rising == ["qzqzqz"]
    (without,) = decoder.generate(["a cat"], max_new_tokens=8, logit_bias={plain[0]: -np.inf})
    assert plain[0] not in without
    assert target == VOCABULARY.encode("q")[0]


# Requests.


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
def test_ids_are_their_text_token_for_token(writers, topology):
    loaded, options = writers[topology], Options(max_new_tokens=9, **SAMPLED, forced="ab")
    reader = loaded.reader()
    texts = [Request.from_text(text, reader, options, number=n) for n, text in enumerate(TEXTS)]
    ids = [
        Request.from_ids(
            reader.frame(VOCABULARY.encode(text)), reader, options, number=n, text=text
        )
        for n, text in enumerate(TEXTS)
    ]
    params = loaded.decoding_params
    for one, other in zip(
        loaded.engine.generate(params, texts), loaded.engine.generate(params, ids), strict=True
    ):
        np.testing.assert_array_equal(one[0].tokens, other[0].tokens)
        assert one[0].text == other[0].text
    bare = Request([70, 71], Options(max_new_tokens=4), rules=Rules(eos_ids=(1,)))
    engine = dataclasses.replace(loaded.engine, vocabulary=None)
    ((answer,),) = engine.generate(params, [bare])
    assert answer.text == ""
    assert answer.finish_reason in ("eos", "length")


@pytest.mark.parametrize("ids", [[70, 99999], [-1], [70.5], "ab"], ids=str)
def test_ids_that_are_no_tokens_are_refused(decoder, ids):
    with pytest.raises(InputError, match=r"^ids has -?\d+: the model's tokens are|whole numbers"):
        Request.from_ids(ids, decoder.reader())


def test_a_reader_needs_no_parameters(decoder):
    reader = Reader(spec=decoder.spec, vocabulary=VOCABULARY, prompts=decoder.prompts)
    assert list(Request.from_text("a cat", reader).ids) == VOCABULARY.encode("a cat")


# Running batches.


def running(loaded, requests, **sizes):
    """A batch of these requests, each in its row, and their settings."""
    params, engine = loaded.decoding_params, loaded.engine
    state = engine.prefill(params, requests, cache_length=LENGTH, capacity=16, **sizes)
    return state, engine.settings(requests, rows=len(state.done))


def finished(loaded, requests, **sizes):
    state, settings = running(loaded, requests, **sizes)
    state = loaded.engine.decode(loaded.decoding_params, state, settings)
    return loaded.engine.answers(requests, state)


@pytest.mark.parametrize("case", ["encoder_decoder", "decoder", "prefix"])
def test_requests_inserted_mid_flight_are_as_alone(writers, case):
    loaded = writers["encoder_decoder" if case == "encoder_decoder" else "decoder"]
    make_request = functools.partial(request, loaded, prompt="prefix" if case == "prefix" else None)
    old = [
        make_request("on the mat with a hat", max_new_tokens=16),
        make_request("sat", max_new_tokens=3, number=1),
        make_request("a cat", max_new_tokens=16, number=2, **SAMPLED),
        make_request("o", max_new_tokens=16, number=3, stop=["e"]),
    ]
    new = [
        make_request("a dog", max_new_tokens=12, number=7, repetition_penalty=1.4),
        make_request("hm", max_new_tokens=9, number=8, temperature=1.1, top_k=20, seed=5),
    ]
    alone = [finished(loaded, [one], rows=1)[0] for one in [*old, *new]]
    engine, params = loaded.engine, loaded.decoding_params
    state, settings = running(loaded, old, rows=ROWS)
    state = engine.decode(params, state, settings, steps=5)
    first = engine.answers(old, state)
    for row, one in zip((1, 3), new, strict=True):  # one after the other, between two steps
        fresh, own = running(loaded, [one], rows=1)
        state, settings = engine.insert(state, [row], fresh), engine.insert(settings, [row], own)
        state = engine.decode(params, state, settings, steps=2)
    state = engine.decode(params, state, settings)
    last = engine.answers([old[0], new[0], old[2], new[1]], state)
    np.testing.assert_array_equal(first[1].tokens, alone[1].tokens)  # had ended
    for answer, expected in zip(last, [alone[0], alone[4], alone[2], alone[5]], strict=True):
        np.testing.assert_array_equal(answer.tokens, expected.tokens)
        assert answer.finish_reason == expected.finish_reason
        np.testing.assert_allclose(
            answer.token_log_probabilities, expected.token_log_probabilities, atol=1e-4
        )
    fresh, own = running(loaded, [new[0]], rows=1)
    (state, settings), compiled = count(
        lambda: (engine.insert(state, [2], fresh), engine.insert(settings, [2], own))
    )
    assert compiled == 0


def test_rows_that_have_ended_stay_within_the_positions_and_leave_nothing(decoder):
    """Without, they run past the learned positions, whose embedding is NaN."""
    engine, params = decoder.engine, decoder.decoding_params
    old = [request(decoder, "sat", max_new_tokens=2), request(decoder, "a", max_new_tokens=60)]
    new = request(decoder, "a cat", max_new_tokens=12, number=4)
    sizes = {"cache_length": 96, "capacity": 64}
    expected = engine.prefill(params, [new], **sizes)
    expected = engine.decode(params, expected, engine.settings([new]))
    state, settings = engine.prefill(params, old, **sizes), engine.settings(old)
    state = engine.decode(params, state, settings)
    assert int(state.cache.lengths.max()) < 96
    for leaf in jax.tree.leaves(state.cache.own):
        assert jnp.isfinite(leaf).all()
    poisoned = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan) if leaf.dtype == jnp.float32 else leaf,
        state.cache,
    )
    state = dataclasses.replace(state, cache=poisoned)
    fresh = engine.prefill(params, [new], **sizes)
    state = engine.insert(state, [0], fresh)
    settings = engine.insert(settings, [0], engine.settings([new]))
    state = engine.decode(params, state, settings)
    (answer,), (alone,) = engine.answers([new], state), engine.answers([new], expected)
    np.testing.assert_array_equal(answer.tokens, alone.tokens)


def test_requests_that_exceed_a_running_batch_are_refused(writers):
    loaded = writers["encoder_decoder"]
    engine, params = loaded.engine, loaded.decoding_params
    state, settings = running(loaded, [request(loaded, "a cat", max_new_tokens=16)], rows=2)
    one = [request(loaded, "a cat", max_new_tokens=16)]
    longer = engine.prefill(params, one, cache_length=32, capacity=16)
    with pytest.raises(InputError, match="give both the same cache_length"):
        engine.insert(state, [0], longer)
    wide, _ = running(loaded, [request(loaded, "a" * 40, max_new_tokens=16)], rows=1)
    with pytest.raises(InputError, match="an input of 64 tokens: this cache has room for 16"):
        engine.insert(state, [0], wide)
    several = [request(loaded, "a", max_new_tokens=16, choices=[*"abcdefghijk"])]
    with pytest.raises(InputError, match=r"choices of shape .* the running batch has room for"):
        engine.insert(settings, [0], engine.settings(several))
    with pytest.raises(InputError, match="cache_length = 8: a request needs 16 new tokens"):
        engine.prefill(params, one, cache_length=8)
    decoder = writers["decoder"]
    with pytest.raises(InputError, match="cache_length = 12: a request needs 21 tokens"):
        decoder.engine.prefill(
            decoder.decoding_params,
            [request(decoder, "a cat", max_new_tokens=16)],
            cache_length=12,
        )


# What is returned.


def test_log_probabilities_of_the_model_and_of_the_policy(decoder):
    texts, options = TEXTS[:3], {"max_new_tokens": 10, "num_log_probabilities": 3}
    drawn = {"temperature": [0.0, 0.7, 1.3], "top_k": [None, 3, None]}
    for row, (answer,) in enumerate(decoder.answers(texts, **options, **drawn)):
        assert len(answer.token_log_probabilities) == len(answer.tokens) == len(answer.top)
        total = answer.token_log_probabilities.sum()
        assert answer.log_probability == pytest.approx(total, rel=1e-5)
        prompt = VOCABULARY.encode(texts[row])
        fed = np.array([[decoder.spec.start_id, *prompt, *answer.tokens[:-1]]], np.int32)
        batch = {"decoder_input_tokens": fed, "decoder_segment_ids": np.ones_like(fed)}
        hidden, _ = decoder.model.hidden(decoder.params, batch)
        logits = np.asarray(decoder.model.logits(decoder.params, hidden))[0, len(prompt) :]
        own = np.asarray(jax.nn.log_softmax(logits))
        at = np.arange(len(answer.tokens)), answer.tokens
        np.testing.assert_allclose(answer.token_log_probabilities, own[at], atol=2e-4)
        for index, best in enumerate(answer.top):
            assert [*best] == np.argsort(-own[index], kind="stable")[:3].tolist()
            np.testing.assert_allclose([*best.values()], np.sort(own[index])[::-1][:3], atol=2e-4)
        policy = answer.policy_log_probabilities
        if row == 0:
            np.testing.assert_array_equal(policy, 0)
            continue
        scaled = np.where(np.arange(own.shape[1]) < VOCABULARY.size, logits, -np.inf)
        scaled = scaled / drawn["temperature"][row]
        if row == 1:
            least = np.sort(scaled)[:, -3:][:, :1]
            scaled = np.where(scaled >= least, scaled, -np.inf)
        expected = np.asarray(jax.nn.log_softmax(scaled))[at]
        np.testing.assert_allclose(policy, expected, atol=2e-4)


def test_reasons_to_end(decoder):
    (whole,) = decoder.generate(["a cat"], max_new_tokens=24)
    answers = decoder.answers(
        ["a cat"] * 4,
        max_new_tokens=24,
        stop=[[whole[5:7]], [], [], []],
        choices=[[], ["yes"], [], []],
        logit_bias=[{}, {}, {VOCABULARY.eos_id: 1e4}, {}],
    )
    assert [a[0].finish_reason for a in answers] == ["stop", "choice", "eos", "length"]
    assert [len(a[0].tokens) for a in answers] == [whole.index(whole[5:7]) + 2, 4, 1, 24]


def test_a_stop_that_the_device_misses_ends_the_row(decoder, monkeypatch):
    """Tokens, log-probabilities and all; the table on the device knows no text here."""
    from t5lite.inference import settings

    (whole,) = decoder.generate(["a cat"], max_new_tokens=24)
    at = whole.index(whole[5:7])
    monkeypatch.setattr(settings, "stop_bytes", lambda _, vocab: settings.no_stop_bytes(vocab))
    ((answer,),) = decoder.answers(["a cat"], max_new_tokens=24, stop=[whole[5:7]])
    assert (answer.text, answer.finish_reason) == (whole[:at], "stop")
    assert len(answer.tokens) == len(answer.token_log_probabilities) == at + 2
    assert answer.log_probability == pytest.approx(answer.token_log_probabilities.sum())


# Speculation, and export.


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
@pytest.mark.light("decoder")
def test_rows_enter_a_running_speculation(writers, topology):
    from t5lite.decoding import DraftMemory, Speculation

    loaded, draft = writers[topology], make(topology, seed=3)
    engine, params, theirs = loaded.engine, loaded.decoding_params, draft.decoding_params
    new = request(loaded, "a dog", max_new_tokens=11, number=5)
    old = [request(loaded, text, max_new_tokens=12, number=n) for n, text in enumerate(TEXTS)]

    def started(requests):
        sizes = {"cache_length": 64, "capacity": 16, "draft_length": 3}
        batch = prompts_of(engine, requests, limit=32, rows=len(requests))
        cache = draft.engine.functions.prefill(theirs, batch, **sizes).cache
        state = engine.functions.prefill(params, batch, **sizes)
        return Speculation.of(state, DraftMemory.of(cache))

    def advanced(running, settings, steps):
        arguments = (params, theirs, running, settings, None, np.int32(steps))
        model = draft.model.unstacked
        return engine.functions.speculate(*arguments, draft_model=model, draft_length=3)[0]

    running, settings = started(old), engine.settings(old, rows=4)
    running = advanced(running, settings, 2)
    running = engine.insert(running, [2], started([new]))
    settings = engine.insert(settings, [2], engine.settings([new], rows=1))
    running = advanced(running, settings, 99)
    answers = engine.answers([old[0], old[1], new, old[3]], running.state)
    for answer, one in zip(answers, [old[0], old[1], new, old[3]], strict=True):
        np.testing.assert_array_equal(answer.tokens, finished(loaded, [one], rows=1)[0].tokens)


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
def test_prefill_and_decode_can_be_exported(topology):
    model = Model(SPECS[topology]).unstacked
    params = model.shapes()
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    batch = {"seeds": jax.ShapeDtypeStruct((2, 2), jnp.uint32)}
    if topology == "decoder":
        batch |= {"decoder_input_tokens": shape((2, 17)), "decoder_lengths": shape((2,))}
    else:
        batch |= {f"encoder_{name}": shape((2, 16)) for name in ("input_tokens", "segment_ids")}
    read = jax.jit(functools.partial(prefill, model, cache_length=32, capacity=16))
    exported = jax.export.export(read)(params, batch)
    assert "stablehlo" in exported.mlir_module()
    state = jax.eval_shape(read, params, batch)
    engine = Engine(Model(SPECS[topology]), VOCABULARY, Layout(), make_mesh(Layout()))
    settings = engine.settings([Request([70], rules=Rules((1,)))], rows=2)
    exported = jax.export.export(jax.jit(functools.partial(decode, model)))(
        params, state, settings, np.int32(8)
    )
    assert "stablehlo.while" in exported.mlir_module()


def test_equal_engines_share_their_functions(decoder):
    first = functions_of(decoder.model, Layout(), decoder.mesh)
    assert functions_of(Model(decoder.spec), Layout(), decoder.mesh) is first
    other = Layout(parameters=(("vocab", None),))
    assert functions_of(decoder.model, other, decoder.mesh) is not first
