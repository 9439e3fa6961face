"""CausalLM, PrefixLM, and decoders' pairs: nothing lost, one EOS, marks where the inputs are."""

import itertools

import numpy as np
import pytest
from objective_texts import T5Words, prepare, random_texts

from t5lite.data.packing import pack
from t5lite.errors import InputError
from t5lite.objectives import (
    CausalLM,
    InputsToTargets,
    PrefixLM,
    Seq2Seq,
    SpanCorruption,
    split_pair,
)
from t5lite.rows import RowSpec

WORDS = T5Words()
TEXTS = random_texts(40)
LENGTHS = {"inputs": 9, "targets": 14}


def stored(texts):
    """Texts as tasks may give them: with EOS or padding, or neither, and one that is empty."""
    ends = itertools.cycle([[], [1], [0, 0], [1, 0]])
    found = [{"targets": np.concatenate([text, next(ends)]).astype(np.int64)} for text in texts]
    return [*found[:3], {"targets": np.array([], np.int64)}, *found[3:], {"targets": np.array([1])}]


def test_causal_lm_loses_no_token_and_ends_each_text_once():
    found = prepare(CausalLM(), stored(TEXTS), lengths={"targets": 16}, vocabulary=WORDS)
    pieces = [example["targets"] for example in found]
    assert all(1 <= piece.size <= 16 and piece.dtype == np.int32 for piece in pieces)
    whole = [token for text in TEXTS for token in [*text.tolist(), 1]]
    assert np.concatenate(pieces).tolist() == whole
    # Only a text's last piece is shorter than a row.
    assert all(piece.size == 16 for piece in pieces if piece[-1] != 1)


def test_causal_lm_without_a_vocabulary_ends_in_t5s_eos():
    (found,) = prepare(
        CausalLM(), [{"targets": np.array([5])}], lengths={"targets": 4}, vocabulary=None
    )
    assert found["targets"].tolist() == [5, 1]


@pytest.mark.parametrize("lengths", [LENGTHS, {"inputs": 2, "targets": 4}])
def test_prefix_lm_loses_no_token_and_respects_both_lengths(lengths):
    found = prepare(PrefixLM(), stored(TEXTS), lengths=lengths, vocabulary=WORDS)
    tokens = []
    for example in found:
        inputs, targets = example["inputs"], example["targets"]
        assert 1 <= inputs.size <= lengths["inputs"]
        assert 1 <= targets.size <= lengths["targets"]
        assert inputs.dtype == targets.dtype == np.int32
        assert targets[-1] == 1
        assert np.count_nonzero(np.concatenate([inputs, targets]) == 1) == 1
        assert targets.size > 1 or inputs.size == 1
        tokens += [*inputs.tolist(), *targets[:-1].tolist()]
    assert tokens == np.concatenate(TEXTS).tolist()


@pytest.mark.parametrize(("topology", "length"), [("encoder_decoder", 9), ("decoder", 22)])
def test_cuts_of_full_pieces_are_uniform(topology, length):
    """Pearson's chi-square over U[1, L - 1], on texts that are much longer than a row."""
    objective = PrefixLM(topology=topology)
    assert objective.piece_length(LENGTHS, WORDS) == length
    text = {"targets": np.full(8000 * length, 7)}
    found = prepare(objective, [text], lengths=LENGTHS, vocabulary=WORDS)
    prefixes = [split_pair(example)[0].size for example in found]
    drawn, complements = np.array(prefixes).reshape(-1, 2).T
    assert (drawn + complements == length).all()
    counts = np.bincount(drawn, minlength=length)
    assert counts[0] == 0
    assert counts.size == length
    expected = drawn.size / (length - 1)
    chi_square = np.square(counts[1:] - expected).sum() / expected
    degrees = length - 2
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("topology", ["encoder_decoder", "decoder"])
def test_full_pieces_of_a_prefix_lm_fill_their_rows(topology):
    objective, lengths = PrefixLM(topology=topology), {"inputs": 32, "targets": 34}
    text = {"targets": np.full(64 * objective.piece_length(lengths, WORDS), 7)}
    found = prepare(objective, [text], lengths=lengths, vocabulary=WORDS)
    rows = pack(found, objective.rows(lengths))
    assert len(rows["targets"]) == (64 if topology == "decoder" else 32)
    assert all((rows[name] > 0).all() for name in rows if name.endswith("_segment_ids"))


@pytest.mark.parametrize("make", [PrefixLM, Seq2Seq, SpanCorruption])
def test_a_decoder_gets_the_same_pairs_in_one_row(make):
    lengths = {"inputs": 12, "targets": 14}
    texts = [{"inputs": t[:5], **each} for t, each in zip(TEXTS, stored(TEXTS), strict=False)]
    kind = {"lengths": lengths, "vocabulary": WORDS}
    spread = {"mean_noise_span_length": 6.0} if make is SpanCorruption else {}
    objective = make(**spread, topology="decoder")
    pairs = list(objective.pairs(iter(texts), **kind, rng=np.random.default_rng(0)))
    rows = prepare(objective, texts, **kind)
    joined = {"targets": RowSpec(26), "prefix": RowSpec(26, kind="aligned", along="targets")}
    assert objective.rows(lengths) == joined
    assert make(**spread).rows(lengths) == {name: RowSpec(n) for name, n in lengths.items()}
    assert len(rows) == len(pairs) > 20
    for row, pair in zip(rows, pairs, strict=True):
        assert row["targets"].tolist() == [*pair["inputs"].tolist(), *pair["targets"].tolist()]
        assert row["prefix"].tolist() == [1] * pair["inputs"].size + [0] * pair["targets"].size
        assert objective.show(row, WORDS) == make(**spread).show(pair, WORDS)
        assert row["prefix"].dtype == row["targets"].dtype == np.int32


def test_same_seed_same_examples_other_seed_others():
    def flat(seed):
        options = {"lengths": LENGTHS, "vocabulary": WORDS, "seed": seed}
        return [e["inputs"].tolist() for e in prepare(PrefixLM(), stored(TEXTS), **options)]

    assert flat(1) == flat(1) != flat(2)


@pytest.mark.parametrize("make", [CausalLM, PrefixLM])
def test_texts_are_taken_as_needed(make):
    endless = ({"targets": np.arange(6, 16)} for _ in itertools.count())
    found = make().prepare(endless, lengths=LENGTHS, vocabulary=WORDS, rng=np.random.default_rng(0))
    assert next(found)["targets"][-1] == 1


@pytest.mark.parametrize("make", [CausalLM, PrefixLM])
def test_missing_features_and_lengths_are_named(make):
    with pytest.raises(InputError, match=rf"{make.__name__} needs the feature 'targets'.*'text'"):
        prepare(make(), [{"text": np.array([3])}], lengths=LENGTHS, vocabulary=WORDS)
    with pytest.raises(InputError, match="has no 'targets'"):
        prepare(make(), [], lengths={"inputs": 4}, vocabulary=WORDS)
    with pytest.raises(InputError, match="has no 'targets'"):
        make().rows({"inputs": 4})


def test_examples_are_shown_as_text():
    example = {"inputs": np.array([7, 8]), "targets": np.array([9, 1])}
    assert CausalLM().show(example, WORDS) == ["w9"]
    assert PrefixLM().show(example, WORDS) == ["w7 w8", "w9"]


def test_pairs_are_for_the_subclass_to_define():
    with pytest.raises(NotImplementedError, match=r"InputsToTargets\.pairs"):
        prepare(InputsToTargets(), [], lengths=LENGTHS, vocabulary=WORDS)
