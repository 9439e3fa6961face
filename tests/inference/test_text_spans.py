"""Tags of words become spans of characters: whole words, prefixes repaired, nothing shifted."""

import itertools
import random

import numpy as np
import pytest

from t5lite.data.files.columns import labels_at_first_tokens
from t5lite.inference.text_spans import (
    Tag,
    joined,
    likeliest,
    split_words,
    tags_at,
    tokens_of_words,
    trimmed,
    without_spaces,
)

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna  saw Bob.", ["Anna", "saw", "Bob", "."]),
        ('(U.S.-based "firm"),', ["(", "U.S.-based", '"', "firm", '"', ")", ","]),
        ("wait... 5% of $3", ["wait", "...", "5", "%", "of", "$", "3"]),
        ("naïve l'été हिन्दी\n", ["naïve", "l'été", "हिन्दी"]),
        ("?! \t", ["?", "!"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


def test_scripts_without_spaces_have_a_word_a_character():
    text = "in 東京の x東"
    places = without_spaces(text, split_words(text))
    assert [text[start:end] for start, end in places] == ["in", *"東京の", "x", "東"]


@pytest.mark.parametrize("seed", range(20))
def test_the_token_of_a_word_is_that_of_training(seed):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 9))]
    text, places, at = " ".join(words), [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    # Tokens of any size, spaces at their front or none, some across two words.
    cuts = sorted({0, len(text), *(rng.randint(0, len(text)) for _ in range(12))})
    offsets = list(itertools.pairwise(cuts))
    if rng.random() < 0.5:
        offsets = [trimmed(text, *index) for index in offsets if text[slice(*index)].strip()]
    labels = labels_at_first_tokens(np.arange(len(words)), words, offsets)
    actual = tokens_of_words(places, offsets)
    for word, token in enumerate(actual):
        trained = np.flatnonzero(labels == word)
        if trained.size:
            assert trained.tolist() == [token]
        else:  # it has no token of its own: the one it shares with the word before it
            start, end = offsets[token]
            assert start < places[word][0] < end


def tag(*names, shares=None):
    text = " ".join(f"w{at}" for at in range(len(names)))
    shares = shares or [0.5] * len(names)
    tags = [
        Tag(3 * at, 3 * at + 2, name, share)
        for at, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    return text, tags


@pytest.mark.parametrize(
    ("names", "spans"),
    [
        (["O", "B-PER", "I-PER", "O"], [("PER", 1, 2)]),
        (["B-PER", "B-PER", "I-PER"], [("PER", 0, 0), ("PER", 1, 2)]),
        (["I-PER", "I-PER", "O", "I-PER"], [("PER", 0, 1), ("PER", 3, 3)]),  # no beginning
        (["B-LOC", "I-PER", "I-PER"], [("LOC", 0, 0), ("PER", 1, 2)]),  # of another kind
        (["O", "O"], []),
        ([], []),
    ],
)
def test_prefixes_are_repaired(names, spans):
    text, tags = tag(*names)
    actual = joined(text, tags, NAMES)
    assert [(span.tag, span.start, span.end) for span in actual] == [
        (name, 3 * first, 3 * last + 2) for name, first, last in spans
    ]
    assert all(span.text == text[span.start : span.end] for span in actual)


def test_other_schemes():
    def actual(names, *tags):
        return [(span.tag, span.text) for span in joined(*tag(*tags), names)]

    plain = ["O", "PER", "LOC"]
    assert actual(plain, "PER", "PER", "LOC", "O") == [("PER", "w0 w1"), ("LOC", "w2")]
    assert actual(["NOUN", "VERB"], "NOUN", "NOUN") == [("NOUN", "w0"), ("NOUN", "w1")]
    assert actual([], 0, 2, 2, 0, 1) == [(2, "w1 w2"), (1, "w4")]
    bioes = [*NAMES, "E-PER", "S-PER"]
    tags = ("B-PER", "E-PER", "I-PER", "S-PER", "S-PER")
    assert actual(bioes, *tags) == [("PER", "w0 w1"), ("PER", "w2"), ("PER", "w3"), ("PER", "w4")]
    assert joined(*tag("B-PER", "I-PER", shares=[0.5, 0.9]), NAMES)[0].probability == 0.7


def test_words_beyond_the_cut_have_no_tag():
    logits = np.array([[0, 9, 0], [0, 0, 9]], np.float32)
    tags = tags_at([(0, 2), (3, 5), (6, 8)], [0, 1, 2], logits, ["O", "A"])
    assert [tag.name for tag in tags] == ["A", 2]  # a label without a name is its number
    assert tags_at([(0, 2)], [-1], logits, []) == []


@pytest.mark.parametrize("no_answer", [False, True])
def test_answers_are_the_likeliest_pairs(no_answer):
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(size=(9, 2)).astype(np.float32) * 2
        tokens = range(rng.integers(0, 3), 8)
        actual, none = likeliest(logits, tokens, max_length=3, count=2, no_answer=no_answer)
        requested = sorted({at for at in tokens if at} | ({0} if no_answer else set()))
        starts, ends = (np.exp(item) / np.exp(item[requested]).sum() for item in logits.T)
        pairs = {
            (first, last): starts[first] * ends[last]
            for first in tokens
            for last in range(first, min(first + 3, 8))
            if first > 0
        }
        best = max(pairs, key=pairs.get)
        assert actual[0][:2] == best
        assert actual[0].probability == pytest.approx(pairs[best], rel=1e-5)
        rest = {p: s for p, s in pairs.items() if p[1] < best[0] or p[0] > best[1]}
        assert actual[1][:2] == max(rest, key=rest.get)
        assert none == (pytest.approx(starts[0] * ends[0], rel=1e-5) if no_answer else None)
    assert likeliest(logits, [], max_length=3, count=2, no_answer=False) == ([], None)
    assert likeliest(logits, [0], max_length=3, count=2, no_answer=True) == ([], 1.0)
