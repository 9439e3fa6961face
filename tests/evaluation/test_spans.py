import numpy as np
import pytest

from t5lite.evaluation.spans import (
    Filled,
    Sentence,
    Span,
    format_filled,
    format_sentences,
    text_of,
)
from t5lite.text import shorten

KEPT = [
    "The object " * 20 + "that is returned by the call is a",
    " view of the underlying buffer, which must not be resized while the view exists; it",
    " raises",
    " if the",
    "s differ. " + "More text follows. " * 10,
    " end",
]
SPANS = [
    Span(" shallow read-only", " new"),
    Span(" always", " always"),
    Span(" ValueError", ""),
    Span(" length", None),
    Span(" never shown", " x"),
]

REPORT = """\
held-out text, its gaps filled in: [right ✓] or [wrong ✗ what stood there]

  1  … The object that is returned by the call is a [new ✗ shallow read-only] view of the underlying
     … the view exists; it [always ✓] raises [nothing ✗ ValueError] if the [not filled ✗ length]s
     differ. More text follows. More text follows. …

  2  A [new ✗ shallow read-only].

312 of 1,000 held-out gaps filled in exactly (31.2%); with another text's input 3.4%
  nats a token: 4.81; with another text's input 5.87; by frequency alone 6.34"""


def test_report_literally():
    filled = Filled(1000, 312, 34, loss=4.8123, unigram=6.3414, shuffled=5.8732)
    report = format_sentences([Sentence(KEPT, SPANS), Sentence(["A", "."], SPANS[:1])])
    assert report + "\n\n" + format_filled(filled) == REPORT


def test_long_gaps_and_texts_keep_to_the_lines():
    long = "word " * 100
    sentence = Sentence([long] * 9, [Span(long, long + "more")] * 8)
    lines = format_sentences([sentence] * 2, max_spans=8).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.count(" ✗ ") for line in lines[1:]) == 2 * 8


def test_gaps_within_a_word_stay_there():
    text = format_sentences([Sentence(["func", "s of "], [Span("tion", "")])])
    assert text.endswith("  1  func[nothing ✗ tion]s of")


@pytest.mark.parametrize(
    ("filled", "right"),
    [(" cat", True), (" cats", False), ("cat", False), ("", False), (None, False)],
)
def test_right_is_exactly_what_stood_there(filled, right):
    assert Span(" cat", filled).right is right


def test_text_of_keeps_the_space_of_a_new_word(words):
    assert text_of(np.array([4, 5]), words) == " cats"
    assert text_of(np.array([5, 3]), words) == "s the"
    assert text_of(np.array([], np.int32), words) == ""


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("start", "one two three …"), ("end", "… four five six"), ("both", "one … six")],
)
def test_shorten_keeps_whole_words(keep, expected):
    assert shorten("one two\n three  four five six", 15, keep=keep) == expected


def test_shorten_cuts_a_long_word_and_leaves_short_text():
    assert shorten("abcdefghij", 7, keep="start") == "abcde …"
    assert shorten("abcdefghij", 7, keep="end") == "… fghij"
    assert shorten("abcdefghij", 7) == "ab … ij"
    assert shorten(" a  b ", 7) == "a b"
