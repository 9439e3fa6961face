"""Sentinels written out in a text are ids, and an answer's spans go where they stand."""

import numpy as np
import pytest

from t5lite.data import Bytes, train_sentencepiece
from t5lite.errors import InputError
from t5lite.inference.gaps import encode, fill_in

VOCABULARY = Bytes(num_sentinels=5)


def test_sentinels_in_text():
    first, last = VOCABULARY.sentinel(0), VOCABULARY.sentinel(4)
    ids = encode("a <extra_id_0>b<extra_id_4>", VOCABULARY)
    assert ids == [*VOCABULARY.encode("a "), first, *VOCABULARY.encode("b"), last]
    bare = Bytes(num_sentinels=0)
    assert encode("<extra_id_0>", bare) == bare.encode("<extra_id_0>")
    with pytest.raises(InputError, match=r"<extra_id_5> in a text: .* up to <extra_id_4>"):
        encode("a <extra_id_5>", VOCABULARY)


def test_sentinels_in_pieces(tmp_path):
    words = ["the cat sat on the mat", "a dog ran", "unsortable lists are sorting"] * 20
    vocabulary = train_sentencepiece(words, 110, num_sentinels=10, cache_folder=tmp_path)
    cat, end = vocabulary.sentinel(0), vocabulary.sentinel(1)
    for text in "the <extra_id_0> sat<extra_id_1>", "the<extra_id_0> sat <extra_id_1>":
        the, sat = vocabulary.encode("the"), vocabulary.encode("sat")
        assert encode(text, vocabulary) == [*the, cat, *sat, end]
    gapped = encode("the <extra_id_0> sat <extra_id_1>", vocabulary)
    answer = [cat, *vocabulary.encode("dog ran"), end, *vocabulary.encode("on a mat"), 1]
    filled = fill_in(gapped, np.array(answer), vocabulary)
    assert vocabulary.decode(filled) == "the dog ran sat on a mat"


def test_filling_in():
    def filled(text, answer):
        answer = np.array(encode(answer, VOCABULARY))
        return VOCABULARY.decode(fill_in(encode(text, VOCABULARY), answer, VOCABULARY))

    assert filled("a <extra_id_0> c", "<extra_id_0>b<extra_id_1>") == "a b c"
    assert filled("<extra_id_1><extra_id_0>", "<extra_id_0>b<extra_id_1>a") == "ab"
    assert filled("a <extra_id_0>c", "<extra_id_0><extra_id_1>") == "a c"  # nothing is an answer
    assert filled("a <extra_id_0> c", "whatever") == "a <extra_id_0> c"
    assert filled("no gap", "<extra_id_0>b") == "no gap"
    assert filled("", "<extra_id_0>b") == ""
