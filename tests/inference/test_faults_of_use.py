"""Batches of any mixture, refusals at the call, and numbers or rules that leave no answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.errors import InputError
from t5lite.inference import embedding
from t5lite.inference.options import Options
from t5lite.inference.request import Request
from t5lite.models import Model, override

pytest.importorskip("tokenizers")

ONE = jax.devices()[:1]


def opened(case, tmp_path_factory, **tokenizer):
    folder = add_tokenizer(copied(case, tmp_path_factory.mktemp(case) / "model"), **tokenizer)
    return t5lite.load(folder, dtype="float32", devices=ONE)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return opened("gpt2", tmp_path_factory, ends=())


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    return opened("t5_1_1", tmp_path_factory)


def test_rows_that_fit_alone_are_answered_in_any_batch(decoder):
    room = decoder.spec.decoder.max_length
    texts, most = ["a" * (room - 2), "b" * 4, "c" * (room // 2)], [2, room - 8, 3]
    together = decoder.answers(texts, max_new_tokens=most)
    for text, new, (answer,) in zip(texts, most, together, strict=True):
        ((alone,),) = decoder.answers([text], max_new_tokens=new)
        np.testing.assert_array_equal(answer.tokens, alone.tokens)
        assert answer.log_probability == pytest.approx(alone.log_probability, rel=1e-5)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_samples": 2, "temperature": 1.0}])
def test_a_stream_is_refused_at_the_call(decoder, options):
    with pytest.raises(InputError, match=f"{next(iter(options))} = 2: .*cannot be streamed"):
        decoder.stream("abc", max_new_tokens=8, **options)


def test_a_draft_s_positions_bound_the_texts(decoder):
    spec = override(decoder.spec, {"decoder.position_embedding.max_length": 12})
    short = dataclasses.replace(
        decoder, engine=dataclasses.replace(decoder.engine, model=Model(spec))
    )
    with pytest.raises(InputError, match="the model takes 12"):
        decoder.generate(["abcdef"], draft=short, max_new_tokens=8)
    reader = decoder.reader(draft=short, draft_length=2, truncate=True)
    request = Request.from_text("abcdefghijk", reader, Options(max_new_tokens=4))
    assert len(request.ids) == 6


def test_a_prefix_has_no_end_and_its_beginning_is_cut(decoder, seq2seq):
    for loaded in (decoder, seq2seq):
        reader = loaded.reader(prompt="prefix", truncate=True)
        ids = loaded.vocabulary.encode("abcd")
        assert Request.from_text("abcd", reader, Options(max_new_tokens=8)).ids == ids
    room = decoder.spec.decoder.max_length
    text = "".join("abcdefg"[n % 7] for n in range(2 * room))
    ids = decoder.vocabulary.encode(text)
    for prompt, remaining in (("continue", ids[-room + 8 :]), ("prefix", ids[-room + 8 :])):
        reader = decoder.reader(prompt=prompt, truncate=True)
        assert Request.from_text(text, reader, Options(max_new_tokens=8)).ids == remaining
    whole = decoder.reader(prompt="inputs", truncate=True)
    assert Request.from_text(text, whole, Options(max_new_tokens=8)).ids[:9] == ids[:9]


def test_errors_suggest_truncation_only_if_it_helps(decoder):
    room = decoder.spec.decoder.max_length
    with pytest.raises(InputError, match="or set truncate=True"):
        decoder.generate(["ab" * room], max_new_tokens=8)
    for truncate in (False, True):
        with pytest.raises(InputError, match=f"choose at most {room - 1} new ones"):
            decoder.generate(["a"], max_new_tokens=room, truncate=truncate)
    assert decoder.generate(["a"], max_new_tokens=room - 1)


def test_choices_are_as_long_as_the_minimum_without_their_end(decoder):
    rules = {"min_new_tokens": 2, "max_new_tokens": 8}
    match = "min_new_tokens = 2: the choice 'a' has 1 tokens"
    with pytest.raises(InputError, match=match):
        decoder.generate(["xy"], choices=["a", "ab"], **rules)
    assert decoder.generate(["xy"], choices=["ab"], **rules) == ["ab"]


def test_beam_search_returns_at_most_the_choices(decoder):
    search = {"choices": ["a", "ab", "a"], "num_beams": 3, "max_new_tokens": 4}
    assert {*decoder.generate(["xy"], num_samples=2, **search)[0]} == {"a", "ab"}
    with pytest.raises(InputError, match="num_samples = 3: beam search returns each of the 2"):
        decoder.generate(["xy"], num_samples=3, **search)


def test_bans_that_leave_nothing_are_refused(decoder):
    every = list(range(decoder.vocabulary.size))
    with pytest.raises(InputError, match="banned leaves no token of the vocabulary"):
        decoder.generate(["a"], banned=every, max_new_tokens=8)
    ends = decoder.generation.eos_ids
    ends = [item for item in ends if item < len(every)] or [decoder.vocabulary.eos_id]
    few = [token for token in every if token not in ends]
    with pytest.raises(InputError, match="which min_new_tokens forbids"):
        decoder.generate(["a"], banned=few, min_new_tokens=1, max_new_tokens=8)


def nothing_after_two(logits, generated):
    return jnp.where((generated.lengths == 2)[:, None], -jnp.inf, logits)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"num_beams": 2}, {"draft": "prompt"}], ids=str
)
def test_rules_that_leave_no_token_are_errors_of_their_row(decoder, options):
    rules = {"logits_fn": nothing_after_two, "max_new_tokens": [6, 2], "banned": [2, 3]}
    with pytest.raises(InputError, match=r"texts\[0\]: no token is allowed"):
        decoder.generate(["abc", "de"], **rules, **options)
    draft = options.pop("draft", None)
    reader = decoder.reader(draft=draft)
    both = []
    for text, most in (("abc", 6), ("de", 2)):
        own = Options(logits_fn=nothing_after_two, max_new_tokens=most, **options)
        both.append(Request.from_text(text, reader, own))
    bad, good = decoder.engine.outcomes(decoder.decoding_params, both, draft=draft)
    assert isinstance(bad, InputError)
    assert len(good[0].tokens) == 2


def broken(loaded, value=jnp.nan):
    """The model with a number that is not one, in the last of its parameters."""
    leaves, tree = jax.tree.flatten(loaded.params)
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(value)
    return dataclasses.replace(loaded, params=jax.tree.unflatten(tree, leaves))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"num_beams": 2}, {"choices": ["ab", "c"]}], ids=str
)
def test_numbers_that_are_not_finite_name_the_row_and_the_parameter(decoder, options):
    nan = broken(decoder)
    name = jax.tree_util.keystr(
        jax.tree_util.tree_leaves_with_path(nan.params)[-1][0], simple=True, separator="/"
    )
    with pytest.raises(InputError, match=rf"texts\[0\]: the model's logits .* parameter {name}"):
        nan.generate(["abc"], max_new_tokens=4, **options)


def test_scores_and_vectors_that_are_not_finite_are_errors(decoder):
    nan = broken(decoder)
    with pytest.raises(InputError, match=r"texts\[0\]: the model's logits are NaN"):
        nan.score(["abc"])
    with pytest.raises(InputError, match=r"texts\[0\]: the numbers of its vector are NaN"):
        nan.embed(["abc"])


def test_a_vector_that_is_not_finite_is_an_error_of_its_row(decoder, monkeypatch):
    def vectors(params, batch):
        lengths = np.sum(batch["decoder_segment_ids"], axis=1, keepdims=True, dtype=np.float32)
        return np.where(lengths == 2, np.nan, lengths)

    monkeypatch.setattr(embedding, "compiled", lambda *_: vectors)
    embedder = embedding.Embedder(decoder)
    requests = [embedder.read(text) for text in ("abc", "ab")]
    good, bad = embedding.embed(decoder, decoder.params, requests)
    assert good.tolist() == [3.0]
    assert isinstance(bad, InputError)
    with pytest.raises(InputError, match=r"texts\[1\]: the numbers of its vector are NaN"):
        decoder.embed(["abc", "ab"])
