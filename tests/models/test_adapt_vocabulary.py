"""Models with larger and other vocabularies, and with word vectors for embeddings."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import logits, random_params, tiny

from t5lite.errors import InputError
from t5lite.layers import LMHeadSpec
from t5lite.models import Model, ModelSpec, override
from t5lite.models.adapt import (
    extend_vocabulary,
    replace_vocabulary,
    to_encoder_decoder,
    vectors_from_text,
    with_vectors,
)

VOCAB, LENGTH = 50, 7
KEY = jax.random.key(5)


def small(name: str, **changes) -> ModelSpec:
    base = {
        "vocab": VOCAB,
        "embed": 16,
        "*.num_layers": 1,
        "*.dropout_rate": 0.0,
        "*.blocks.*.attention.num_heads": 2,
        "*.blocks.*.attention.head_dim": 8,
        "*.blocks.*.mlp.hidden": 24,
    }
    return override(name, base | changes)


GPT, LLAMA, BERT = small("gpt_nano"), small("llama_nano"), small("bert_nano")
MODELS = {
    "tied": GPT,
    "tied_with_bias": override(GPT, {"heads": (LMHeadSpec(tied=True, use_bias=True),)}),
    "untied_with_bias": override(LLAMA, {"heads": (LMHeadSpec(use_bias=True),)}),
    "masked_lm": BERT,
    "encoder_decoder": tiny("t5_1_1_nano", **{"*.num_layers": 1}),
}
every_model = pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)


def batch():
    rng = np.random.default_rng(0)
    return {
        f"{side}_input_tokens": jnp.asarray(rng.integers(3, 40, (2, LENGTH)), jnp.int32)
        for side in ("encoder", "decoder")
    }


def table(params):
    return np.asarray(params["token_embedding"]["embedding"])


def assert_fits(spec, params):
    reference = Model(spec).shapes()
    assert jax.tree.structure(params) == jax.tree.structure(reference)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, reference)


def exactly(actual, expected):
    np.testing.assert_array_equal(actual, expected)


@every_model
@pytest.mark.light("tied")
def test_logits_of_old_tokens_stay_to_the_bit(spec):
    params = random_params(spec)
    new_spec, new = extend_vocabulary(spec, params, 9, num_pieces=45, multiple_of=8)
    assert new_spec == spec.replace(vocab=56)
    assert_fits(new_spec, new)
    actual, expected = logits(new_spec, new, batch()), logits(spec, params, batch())
    exactly(actual[..., :45], expected[..., :45])
    # The mean row has the mean of the logits, biases included.
    mean = np.mean(expected[..., :45], axis=-1, keepdims=True)
    np.testing.assert_allclose(actual[..., 45:54], np.broadcast_to(mean, (2, LENGTH, 9)), atol=2e-5)


def test_two_tables_grow_alike():
    spec, params = to_encoder_decoder(GPT, random_params(GPT), shared_embedding=False)
    _, new = extend_vocabulary(spec, params, 3, init="normal", rng=KEY)
    exactly(new["encoder_embedding"]["embedding"], new["token_embedding"]["embedding"])
    assert table(new).shape == (128, 16)


@pytest.mark.parametrize(
    ("num_new", "num_pieces", "multiple_of", "vocab"),
    [(0, None, 1, 50), (0, 40, 1, 50), (4, 40, 16, 50), (4, 48, 16, 64), (4, 48, 1, 52)],
)
def test_new_tokens_take_the_place_of_padding(num_new, num_pieces, multiple_of, vocab):
    params = random_params(GPT)
    options = {"num_pieces": num_pieces, "multiple_of": multiple_of}
    spec, new = extend_vocabulary(GPT, params, num_new, **options)
    assert spec.vocab == vocab
    old, num_pieces = table(params), num_pieces or VOCAB
    exactly(table(new)[:num_pieces], old[:num_pieces])
    added = table(new)[num_pieces : num_pieces + num_new]
    mean = np.broadcast_to(old[:num_pieces].mean(axis=0), added.shape)
    np.testing.assert_allclose(added, mean, atol=1e-6)
    padding = table(new)[num_pieces + num_new : VOCAB]
    exactly(padding, old[num_pieces + num_new : VOCAB])


def test_drawn_rows_have_the_old_ones_mean_and_covariance_together():
    """Across embeddings and logits: they are drawn as one vector."""
    spec = override(LLAMA, {"embed": 4, "vocab": 30})
    params = random_params(spec)
    _, new = extend_vocabulary(spec, params, 20_000, num_pieces=25, init="normal", rng=KEY)

    def rows(params, part):
        kernel = np.asarray(params["lm_head"]["projection"]["kernel"])
        return np.concatenate([table(params), kernel.T], axis=1)[part]

    old, drawn = rows(params, slice(25)), rows(new, slice(25, 20_025))
    np.testing.assert_allclose(drawn.mean(0), old.mean(0), atol=0.01)
    expected = np.cov(old.T, bias=True)
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.002)
    assert np.abs(expected[:4, 4:]).max() > 0.006  # the two tables' covariance, far above that


def test_pieces_are_the_mean_of_the_old_ones_they_consist_of():
    params = random_params(GPT)
    parts = {"ab": [3, 4], "c": [7], "abcab": [3, 4, 7, 3, 4], "?": []}
    spec, new = extend_vocabulary(
        GPT, params, list(parts), num_pieces=45, decompose=lambda piece: parts[piece]
    )
    assert spec.vocab == 128
    old = table(params)
    for row, ids in enumerate([[3, 4], [7], [3, 4, 7, 3, 4], range(45)], 45):
        np.testing.assert_allclose(table(new)[row], old[list(ids)].mean(axis=0), atol=1e-6)


@every_model
@pytest.mark.slow
def test_another_vocabulary_keeps_the_pieces_of_both(spec):
    params = random_params(spec)
    old = [f"piece{index}" for index in range(48)]
    new = ["new", *old[30:10:-1], "piece3+piece4", "piece3"]

    def decompose(piece):
        return [old.index(part) for part in piece.split("+")] if "+" in piece else []

    options = {"multiple_of": 8, "rng": KEY, "decompose": decompose, "start_id": 0}
    new_spec, new_params, counts = replace_vocabulary(spec, params, old, new, **options)
    assert new_spec == spec.replace(vocab=24)
    assert_fits(new_spec, new_params)
    assert counts == {"kept": 21, "composed": 1, "drawn": 1}
    shared = [old.index(piece) for piece in new if piece in old]
    exactly(table(new_params)[[*range(1, 21), 22]], table(params)[shared])
    np.testing.assert_allclose(table(new_params)[21], table(params)[3:5].mean(axis=0), atol=1e-6)
    # The same text in the ids of either: the same logits of the same pieces.
    rng = np.random.default_rng(1)
    ids = jnp.asarray(rng.integers(1, 21, (2, LENGTH)), jnp.int32)
    batch = {f"{side}_input_tokens": ids for side in ("encoder", "decoder")}
    here = dict.fromkeys(batch, 31 - ids)
    actual, expected = logits(new_spec, new_params, batch), logits(spec, params, here)
    np.testing.assert_allclose(actual[..., 1:21], expected[..., 30:10:-1], atol=1e-6)


def test_the_start_token_moves_with_its_piece():
    spec, params = GPT.replace(start_id=2), random_params(GPT)
    old, options = ["a", "b", "</s>"], {"init": "mean"}
    assert replace_vocabulary(spec, params, old, ["</s>", "c"], **options)[0].start_id == 0
    assert replace_vocabulary(spec, params, old, ["c", "a", "</s>"], **options)[0].start_id == 2
    with pytest.raises(InputError, match="start_id must be given: the decoder reads 2 first"):
        replace_vocabulary(spec, params, old, ["a", "c"], **options)
    spec, *_ = replace_vocabulary(spec, params, old, ["a", "c"], start_id=1, **options)
    assert spec.start_id == 1


def test_numpy_arrays_and_bfloat16_are_taken_too():
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf.astype(jnp.bfloat16)), random_params(MODELS["masked_lm"])
    )
    spec, new = extend_vocabulary(BERT, params, 4, init="normal", multiple_of=2, rng=KEY)
    assert_fits(spec, new)
    assert new["token_embedding"]["embedding"].dtype == jnp.bfloat16
    exactly(table(new)[:VOCAB], params["token_embedding"]["embedding"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_tokens": -1}, "new_tokens must be at least 0, not -1"),
        ({"num_pieces": 51}, "num_pieces: there must be 1 to 50"),
        ({"init": "zeros"}, "init must be one of mean, normal, not 'zeros'"),
        ({"init": "normal"}, "rng must be a PRNG key where init is 'normal'"),
        ({"multiple_of": 0}, "multiple_of must be at least 1, not 0"),
        ({"decompose": lambda piece: []}, "decompose must be None, or new_tokens the pieces"),
        (
            {"new_tokens": ["a"], "decompose": lambda piece: [50]},
            r"decompose\('a'\) = \[50\]: must be ids of old pieces, 0 .. 49",
        ),
    ],
)
def test_bad_arguments_of_a_vocabulary(options, message):
    with pytest.raises(InputError, match=message):
        extend_vocabulary(GPT, random_params(GPT), **{"new_tokens": 2} | options)


def test_vocabularies_that_do_not_fit():
    params = random_params(GPT)
    with pytest.raises(InputError, match="old_pieces: there must be 1 to 50"):
        replace_vocabulary(GPT, params, ["a"] * 51, ["a"])
    with pytest.raises(InputError, match="new_pieces must be at least one"):
        replace_vocabulary(GPT, params, ["a"], [])
    with pytest.raises(InputError, match=r"start_id must be in 0 .. 0, not 1"):
        replace_vocabulary(GPT, params, ["a"], ["a"], start_id=1)
    with pytest.raises(InputError, match="of the same model"):
        extend_vocabulary(GPT.replace(vocab=51), params, 1)


# Word vectors.


def written(folder, text, name="vectors.txt"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("header", ["", "3 2\n"], ids=["glove", "word2vec"])
def test_vectors_are_read_with_and_without_a_first_line(tmp_path, header):
    text = f"{header}the 1 -0.5\nof 2e-1 3 \n. . . 4 5\n"
    vectors = vectors_from_text(written(tmp_path, text))
    assert {word: vector.tolist() for word, vector in vectors.items()} == {
        "the": [1.0, -0.5],
        "of": [np.float32(0.2), 3.0],
        ". . .": [4.0, 5.0],
    }
    assert vectors["of"].dtype == np.float32
    assert list(vectors_from_text(tmp_path / "vectors.txt", only={"of"})) == ["of"]
    packed = written(tmp_path, gzip.compress(text.encode()), "vectors.txt.gz")
    assert list(vectors_from_text(packed)) == ["the", "of", ". . ."]


def test_the_first_of_two_vectors_counts_and_damaged_letters_do_not_matter(tmp_path):
    path = written(tmp_path, b"a 1 2\na 3 4\n\xff\xfe 5 6\n\xc2\x85 7 8\n\n")
    vectors = vectors_from_text(path)
    assert vectors["a"].tolist() == [1.0, 2.0]
    assert vectors["\x85"].tolist() == [7.0, 8.0]  # a line break to some, but not here


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 2\nb 1\n", "line 2 holds 1 numbers after its word instead of 2"),
        ("a 1 2\nb 1 2 3\n", "line 2 holds 3 numbers after its word instead of 2"),
        ("1 3\na 1 2\n", "line 2 holds 2 numbers after its word instead of 3"),
        ("a 1 2\nb 1 x\n", "line 2: could not convert string to float: 'x'"),
        ("a 1 2\nb 1 nan\n", "line 2 holds a number that is not finite"),
        ("5 2\na 1 2\n", "announces 5 words and there are 1"),
        ("hello\n", "line 1 holds 0 numbers"),
        ("2 0\na 1\n", "line 2 holds 1 numbers"),
        ("", "holds no word vectors"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        vectors_from_text(written(tmp_path, text))


def test_files_that_are_no_vectors(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        vectors_from_text(tmp_path / "none.txt")
    whole = gzip.compress(b"a 1 2\n" * 100)
    for damaged in (b"a 1 2\n", whole[:-10]):
        with pytest.raises(InputError, match="is not a whole gzip file"):
            vectors_from_text(written(tmp_path, damaged, "vectors.gz"))


PIECES = ["<s>", "▁The", "the", "ing", "##ing", "ĠCat", "zebra", "cat", "##"]
WORDS = ["the", "ing", "Cat", "cat"]
FOUND = {1: "the", 2: "the", 3: "ing", 4: "ing", 5: "Cat", 7: "cat"}


def word_vectors(width):
    rng = np.random.default_rng(2)
    return {word: rng.standard_normal(width).astype(np.float32) for word in WORDS}


@pytest.mark.parametrize("spec", [GPT, LLAMA], ids=["tied", "untied"])
def test_rows_of_known_pieces_are_their_vectors_in_the_old_rows_length(spec):
    params, vectors = random_params(spec), word_vectors(16)
    same, new, actual = with_vectors(spec, params, PIECES, vectors)
    assert (same, actual) == (spec, 6)
    rows, old = table(new), table(params)
    rest = [row for row in range(VOCAB) if row not in FOUND]
    exactly(rows[rest], old[rest])
    ratios = np.stack([rows[row] / vectors[word] for row, word in FOUND.items()])
    np.testing.assert_allclose(ratios, ratios.flat[0], rtol=1e-5)
    length = np.linalg.norm(rows[list(FOUND)], axis=1).mean()
    np.testing.assert_allclose(length, np.linalg.norm(old[:9], axis=1).mean(), rtol=1e-5)
    for name in params.keys() - {"token_embedding"}:
        jax.tree.map(exactly, new[name], params[name])


@pytest.mark.parametrize("width", [10, 24])
def test_vectors_of_another_width_are_rotated_or_projected(width):
    params, vectors = random_params(GPT), word_vectors(width)
    _, new, actual = with_vectors(GPT, params, PIECES, vectors, rng=KEY)
    assert actual == 6
    rows = table(new)[list(FOUND)]
    source = np.stack([vectors[word] for word in FOUND.values()])

    def cosines(rows):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    difference = np.abs(cosines(rows) - cosines(source)).max()
    assert difference < 1e-5 if width == 10 else 1e-3 < difference < 0.9
    again = with_vectors(GPT, params, PIECES, vectors, rng=KEY)[1]
    exactly(table(again), table(new))


def test_no_match_changes_nothing():
    params = random_params(GPT)
    _, new, actual = with_vectors(GPT, params, ["nothing"], word_vectors(16))
    assert actual == 0
    exactly(table(new), table(params))


def test_vectors_that_do_not_fit():
    params, vectors = random_params(GPT), word_vectors(10)
    with pytest.raises(InputError, match="rng must be a PRNG key: vectors are 10 wide and the"):
        with_vectors(GPT, params, PIECES, vectors)
    with pytest.raises(InputError, match="pieces: there must be 1 to 50"):
        with_vectors(GPT, params, PIECES * 6, vectors)
    with pytest.raises(InputError, match="vectors must all have one width"):
        with_vectors(GPT, params, PIECES, vectors | {"the": np.zeros(3)})
