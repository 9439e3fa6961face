"""Span corruption: T5's lengths and counts, every mask equally likely, and nothing gets lost."""

import collections
import itertools

import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.objectives import SpanCorruption, marked_text, merge, spans
from t5lite.objectives.span_corruption import SpanCounts, _replace_runs


class Words:
    """A vocabulary by the protocol: id 3 is ` w3`; the last ids are sentinels, downwards."""

    pad_id, eos_id = 0, 1
    frame = target_frame = Frame(after=(1,))

    def __init__(self, size=1100, num_sentinels=100):
        self.size, self.num_sentinels = size, num_sentinels

    def sentinel(self, index):
        return self.size - 1 - index

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids)


WORDS = Words()
LENGTHS = {"inputs": 512, "targets": 114}


def prepare(documents, *, objective=None, lengths=None, vocabulary=WORDS, seed=0):
    return list(
        (objective or SpanCorruption()).prepare(
            iter([{"targets": document} for document in documents]),
            lengths=lengths or LENGTHS,
            vocabulary=vocabulary,
            rng=np.random.default_rng(seed),
        )
    )


def text_of(example):
    return np.concatenate([p.tokens for p in merge(example["inputs"], example["targets"], WORDS)])


def random_text(length, seed=0):
    return np.random.default_rng(seed).integers(2, 1000, length, dtype=np.int32)


@pytest.mark.parametrize(
    ("options", "inputs_length", "raw_length", "targets_length"),
    [
        ({}, 512, 568, 114),  # Raffel et al., and every T5 config since
        ({}, 1024, 1137, 229),
        ({"mean_noise_span_length": 20.0}, 1024, 1193, 189),  # ByT5
        ({"noise_density": 0.5}, 512, 766, 512),
    ],
)
def test_published_lengths(options, inputs_length, raw_length, targets_length):
    objective = SpanCorruption(**options)
    assert objective.raw_length(inputs_length) == raw_length
    counts = objective.counts(raw_length)
    assert counts.inputs <= inputs_length
    assert counts.targets == targets_length


OPTIONS = [
    {"noise_density": density, "mean_noise_span_length": mean}
    for density in (0.01, 0.15, 0.3, 0.5, 0.85)
    for mean in (1.0, 2.5, 3.0, 32.0)
]


def t5_raw_length(inputs_length, noise_density, mean_noise_span_length):
    """T5's `random_spans_helper`, as the paper's code searches: one token more while it fits."""

    def both(n):
        noise = round(n * noise_density)
        num_spans = round(noise / mean_noise_span_length)
        return n - noise + num_spans + 1, noise + num_spans + 1

    n = inputs_length - 1
    while both(n + 1)[0] <= inputs_length:
        n += 1
    return n - 1 if noise_density == 0.5 and both(n)[1] > both(n)[0] else n


@pytest.mark.parametrize("options", OPTIONS)
def test_raw_length_is_the_longest_that_fits(options):
    objective = SpanCorruption(**options)
    for inputs_length in range(3, 200):
        raw_length = objective.raw_length(inputs_length)
        assert raw_length >= 2
        counts = objective.counts(raw_length)
        assert counts.inputs <= inputs_length
        if objective.noise_density < 0.5:
            assert counts.inputs == inputs_length
        if objective.noise_density == 0.5:
            assert counts.targets <= inputs_length
        # In very short texts T5 counts no span, or too many, where its mask has another number.
        kept = raw_length - counts.noise
        if 1 < counts.spans < kept and counts.noise > 1:
            assert raw_length == t5_raw_length(inputs_length, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_any_length_is_divided_and_put_together_again(options):
    """Also where rounding would leave no noise, no text, or too little text between spans."""
    objective = SpanCorruption(**options)
    sentinels = np.arange(1099, 0, -1, dtype=np.int32)
    for num_tokens in [*range(2, 40), 97, 300]:
        counts = objective.counts(num_tokens)
        assert counts.noise >= 1
        assert 1 <= counts.spans <= min(counts.noise, num_tokens - counts.noise)
        mask = objective._noise_mask(num_tokens, np.random.default_rng(num_tokens))
        assert mask.shape == (num_tokens,)
        assert not mask[0]
        assert mask[-1]
        assert mask.sum() == counts.noise
        assert np.count_nonzero(mask[1:] & ~mask[:-1]) == counts.spans
        tokens = np.zeros(num_tokens, np.int32)
        assert len(_replace_runs(tokens, mask, sentinels)) + 1 == counts.inputs
        assert len(_replace_runs(tokens, ~mask, sentinels)) + 1 == counts.targets


def test_all_masks_are_equally_likely():
    """Three noise tokens in two spans among four others: 2 ways times 3 ways."""
    objective = SpanCorruption(noise_density=3 / 7, mean_noise_span_length=1.5)
    assert objective.counts(7) == SpanCounts(noise=3, spans=2, inputs=7, targets=6)
    rng, draws = np.random.default_rng(0), 6000
    masks = collections.Counter(
        "".join(".#"[int(n)] for n in objective._noise_mask(7, rng)) for _ in range(draws)
    )
    expected = set()
    for kept, noise in itertools.product([(1, 3), (2, 2), (3, 1)], [(1, 2), (2, 1)]):
        expected.add("".join("." * k + "#" * n for k, n in zip(kept, noise, strict=True)))
    assert set(masks) == expected
    chi_squared = sum((count - draws / 6) ** 2 / (draws / 6) for count in masks.values())
    assert chi_squared < 20.5  # 99.9 % of draws with 5 degrees of freedom


def test_the_papers_example():
    text = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], np.int32)
    noise = np.isin(text, [12, 13, 18])
    sentinels = np.array([99, 98, 97], np.int32)
    inputs = _replace_runs(text, noise, sentinels)
    assert inputs.tolist() == [10, 11, 99, 14, 15, 16, 17, 98, 19, 20]
    # The mask of the paper's figure ends in text, so a last sentinel ends the targets; the masks
    # that are drawn end in noise, and then there is none: 28 spans, not 29, in 114 targets.
    assert _replace_runs(text, ~noise, sentinels).tolist()[:6] == [99, 12, 13, 98, 18, 97]


@pytest.mark.parametrize("seed", range(20))
def test_inputs_and_targets_hold_the_text_and_fill_their_lengths(seed):
    text = random_text(568 * 3, seed)
    examples = prepare([text], seed=seed)
    assert len(examples) == 3
    for i, example in enumerate(examples):
        inputs, targets = example["inputs"], example["targets"]
        assert inputs.dtype == targets.dtype == np.int32
        assert (len(inputs), len(targets)) == (512, 114)
        np.testing.assert_array_equal(text_of(example), text[568 * i : 568 * (i + 1)])
        assert inputs[0] == text[568 * i]  # the first token is never noise
        assert inputs[-2] == targets[targets >= 1000][-1]  # and the last one always is
        assert inputs[-1] == targets[-1] == 1
        assert np.count_nonzero(inputs == 1) == np.count_nonzero(targets == 1) == 1
        for tokens in (inputs, targets):
            np.testing.assert_array_equal(tokens[tokens >= 1000], 1099 - np.arange(28))
        assert targets[0] == 1099


def test_noise_share_and_span_lengths_are_those_asked_for():
    objective = SpanCorruption(noise_density=0.3, mean_noise_span_length=4.0)
    lengths = {"inputs": 256, "targets": 200}
    examples = prepare([random_text(50_000)], objective=objective, lengths=lengths)
    found = [span for e in examples for span in spans(e["targets"], WORDS).values()]
    sizes = np.array([len(span) for span in found])
    assert abs(sizes.sum() / 50_000 - 0.3) < 0.002
    assert abs(sizes.mean() - 4.0) < 0.05
    assert sizes.min() == 1
    assert sizes.max() > 12  # lengths vary: nearly geometric


def test_documents_are_joined_without_eos_and_no_token_is_lost():
    documents = [random_text(n, seed=n) for n in (3, 700, 1, 20, 1500, 90, 2)]
    stored = [np.concatenate([d, [1], [0] * (len(d) % 3)]) for d in documents]  # EOS and padding
    stored.insert(2, np.array([], np.int64))
    examples = prepare(stored)
    whole = np.concatenate(documents)
    np.testing.assert_array_equal(np.concatenate([text_of(e) for e in examples]), whole)
    assert [len(text_of(e)) for e in examples] == [568] * 4 + [len(whole) - 4 * 568]
    last = examples[-1]
    counts = SpanCorruption().counts(len(whole) - 4 * 568)
    assert (len(last["inputs"]), len(last["targets"])) == (counts.inputs, counts.targets)


@pytest.mark.parametrize(("rest", "examples"), [(0, 1), (1, 1), (2, 2)])
def test_a_rest_of_one_token_cannot_be_corrupted(rest, examples):
    assert len(prepare([random_text(568 + rest)])) == examples


def test_no_text_gives_no_examples():
    assert prepare([]) == []
    assert prepare([np.array([1])]) == []


def test_same_seed_same_examples_other_seed_others():
    def flat(seed):
        return np.concatenate([e["inputs"] for e in prepare([random_text(5000)], seed=seed)])

    np.testing.assert_array_equal(flat(1), flat(1))
    assert not np.array_equal(flat(1), flat(2))


def test_text_is_taken_as_needed():
    def endless():
        for n in itertools.count():
            taken.append(n)
            yield {"targets": random_text(100)}

    taken = []
    found = SpanCorruption().prepare(
        endless(), lengths=LENGTHS, vocabulary=WORDS, rng=np.random.default_rng(0)
    )
    next(found)
    assert len(taken) == 6


def test_more_room_for_targets_is_fine_and_less_says_how_much_is_needed():
    assert len(prepare([random_text(568)], lengths={"inputs": 512, "targets": 200})) == 1
    with pytest.raises(InputError, match=r"'targets'\] is 113.* at least 114"):
        prepare([], lengths={"inputs": 512, "targets": 113})
    with pytest.raises(InputError, match=r"'inputs'\] is 2.* at least 3"):
        prepare([], lengths={"inputs": 2, "targets": 114})


def test_too_few_sentinels_are_counted():
    assert len(prepare([random_text(568)], vocabulary=Words(num_sentinels=28))) == 1
    with pytest.raises(InputError, match="has 27 sentinels and 512 inputs need 28"):
        prepare([], vocabulary=Words(num_sentinels=27))
    with pytest.raises(InputError, match="0 sentinels"):
        prepare([], vocabulary=None)


def test_a_task_without_text_is_refused():
    found = SpanCorruption().prepare(
        iter([{"text": np.array([3])}]),
        lengths=LENGTHS,
        vocabulary=WORDS,
        rng=np.random.default_rng(0),
    )
    with pytest.raises(InputError, match=r"'targets'.*\['text'\]"):
        next(found)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_density": 0.0},
        {"noise_density": 1.0},
        {"noise_density": "0.15"},
        {"mean_noise_span_length": 0.5},
        {"mean_noise_span_length": float("inf")},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SpanCorruption(**options)


def test_spans_of_a_models_output_are_read_leniently():
    """Sentinels out of order, twice, or missing; text before the first; nothing after EOS."""
    s = [WORDS.sentinel(i) for i in range(4)]
    found = spans(np.array([7, s[1], 20, s[0], 21, 22, s[1], 23, s[3], 1, s[2], 24]), WORDS)
    assert {index: tokens.tolist() for index, tokens in found.items()} == {
        1: [20],
        0: [21, 22],
        3: [],
    }


def test_marked_text_shows_the_spans_in_their_places():
    s = [WORDS.sentinel(i) for i in range(3)]
    inputs = np.array([2, 3, s[0], 4, s[1], 5, s[2], 1, 0, 0])
    targets = np.array([s[0], 10, 11, s[2], 12, 1, 0])
    assert marked_text(inputs, targets, WORDS) == "w2 w3 [w10 w11] w4[] w5 [w12]"
    assert marked_text(inputs, targets, WORDS, left="<<", right=">>").startswith("w2 w3 <<w10")


def test_an_example_is_shown_as_text_with_its_spans_marked():
    s = [WORDS.sentinel(i) for i in range(2)]
    example = {"inputs": np.array([2, s[0], 4, 1]), "targets": np.array([s[0], 10, 11, 1])}
    assert SpanCorruption().show(example, WORDS) == ["w2 «w10 w11» w4"]


class Pieces(Words):
    """In turn: a piece that begins a word, one that goes on with it, punctuation."""

    def piece(self, token_id):
        if token_id >= self.size - self.num_sentinels or token_id < 2:
            return f"<extra_id_{self.size - 1 - token_id}>"
        return (f"▁w{token_id}", f"x{token_id}", ",")[token_id % 3]


PIECES = Pieces()
WORD_LENGTHS = {"inputs": 34, "targets": 15}


def words_taken(seed):
    """What whole-word corruption makes of a random text: (text, examples)."""
    text = random_text(33 * 20, seed)
    objective = SpanCorruption(noise_density=0.25, mean_noise_span_length=1.5, whole_word=True)
    return text, prepare(
        [text], objective=objective, lengths=WORD_LENGTHS, vocabulary=PIECES, seed=seed
    )


@pytest.mark.parametrize("seed", range(10))
def test_whole_words_lose_no_token_and_keep_to_their_lengths(seed):
    text, examples = words_taken(seed)
    whole = np.concatenate([text_of(example) for example in examples])
    np.testing.assert_array_equal(whole, text)
    for example in examples:
        assert len(example["inputs"]) <= 34
        assert len(example["targets"]) <= 15
        assert example["inputs"][-1] == example["targets"][-1] == 1
        assert example["targets"][0] == PIECES.sentinel(0)
        assert example["targets"][-2] < 1000  # a word, no sentinel


@pytest.mark.parametrize("seed", range(10))
def test_each_span_is_one_whole_word_between_what_is_kept(seed):
    _, examples = words_taken(seed)
    sizes = []
    for example in examples:
        pieces = merge(example["inputs"], example["targets"], PIECES)
        for before, piece, after in zip(pieces[:-1], pieces[1:], [*pieces[2:], None], strict=True):
            if piece.span is None:
                continue
            assert [token % 3 for token in piece.tokens] == [0] + [1] * (len(piece.tokens) - 1)
            assert before.span is None, "two words side by side"
            assert after is not None, "a word that the end of the text may cut"
            assert after.tokens[0] % 3 != 1, "the word goes on"
            sizes.append(len(piece.tokens))
    assert 1 < np.mean(sizes) < 2
    assert len(sizes) > 3 * len(examples)


def test_a_text_without_a_word_is_left_out():
    objective = SpanCorruption(noise_density=0.25, mean_noise_span_length=1.5, whole_word=True)
    commas = np.full(33, 5, np.int32)
    words = random_text(33)
    made = prepare(
        [commas, words, commas], objective=objective, lengths=WORD_LENGTHS, vocabulary=PIECES
    )
    assert [text_of(example).tolist() for example in made] == [words.tolist()]
