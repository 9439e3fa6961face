import numpy as np
import pytest

from t5lite.evaluation.spans import (
    Losses,
    Sentence,
    Span,
    format_losses,
    format_sentences,
    text_of,
)
from t5lite.evaluation.text import shorten

KEPT = [
    "The object " * 20 + "that is returned by the call is a",
    " view of the underlying buffer, which must not be resized while the view exists; it",
    " raises",
    " if the",
    "s differ. " + "More text follows. " * 10,
    " end",
]
SPANS = [
    Span(" shallow read-only", " new", [("▁new", 0.31), ("▁list", 0.12), ("▁read", 0.054)]),
    Span(" always", " is not", [("▁is", 0.4), ("▁can", 0.2)]),
    Span(" ValueError", "", [("▁Value", 0.995), ("▁Type", 0.001)]),
    Span(" length", None, [("▁very" * 12, 0.9)]),
    Span(" never shown", " x", []),
]


HEAD = "       model                     truth                     candidates"
HEAD += ", if earlier gaps were true"
REPORT = [
    "span filling at step 1,200: 9,812 masked tokens of 256 held-out examples",
    "  nats a token, sentinels and EOS left out",
    "    model                           4.812",
    "    unigrams of training text       6.341   the model is 1.529 below",
    "    model, another's inputs         5.873   1.061 worse than with its own",
    "",
    "  held-out text, its [gaps] filled in greedily",
    "",
    "  1  … The object that is returned by the call is a [1] view of the underlying … the view"
    " exists; it",
    "     [2] raises [3] if the [4]s differ. More text follows. More text follows. …",
    HEAD,
    "   [1] new                       shallow read-only         ▁new 31%  ▁list 12%  ▁read 5%",
    "   [2] is not                    always                    ▁is 40%  ▁can 20%",
    "   [3] (nothing)                 ValueError                ▁Value 100%  ▁Type 0%",
    "   [4] (not reached)             length",
    "",
    "  2  A [1].",
    HEAD,
    "   [1] new                       shallow read-only         ▁new 31%  ▁list 12%  ▁read 5%",
]


def test_report_literally():
    losses = Losses(4.8123, 6.3414, 5.8732, num_tokens=9812, num_examples=256)
    report = format_losses(1200, losses, name="span filling") + "\n\n"
    report += format_sentences([Sentence(KEPT, SPANS), Sentence(["A", "."], SPANS[:1])])
    assert report.splitlines() == REPORT


def test_a_wide_or_hopeless_model_keeps_to_the_lines():
    bad = Losses(12.5, 6.25, 12.5, num_tokens=1, num_examples=2)
    text = format_losses(0, bad, name="span filling")
    assert "the model is 6.250 ABOVE" in text
    assert "NO worse: inputs are not used" in text
    long = "word " * 100
    span = Span(long, long, [("piece" * 3, 0.2)] * 20)
    lines = format_sentences([Sentence([long] * 9, [span] * 8)] * 2, max_spans=8).splitlines()
    assert max(map(len, lines)) <= 100
    text, _, _ = "".join(lines).partition("model  ")
    assert all(f"[{gap}]" in text for gap in range(1, 9))


def test_gaps_within_a_word_stay_there():
    kept, spans = ["func", "s of "], [Span("tion", "", [])]
    assert "  1  func[1]s of\n" in format_sentences([Sentence(kept, spans)])


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
