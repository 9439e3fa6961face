"""What columns become: classes, numbers, tags at words' first tokens, answers' tokens."""

import numpy as np
import pytest

from t5lite.data.files.columns import Answer, Class, Number, Tags, as_column
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.data.vocabularies.training import train_sentencepiece
from t5lite.errors import InputError

TEXT = "The naïve café’s owner (née Zoë) opened  it — in 1999; the ﬁrst one… of 7 cafés."


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    texts = [TEXT, "the owner opened one of the first cafes in 1999 and it was naive"] * 20
    folder = tmp_path_factory.mktemp("vocabulary")
    return train_sentencepiece(texts, 112, num_sentinels=4, cache_folder=folder)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    pytest.importorskip("tokenizers")
    from t5lite.data.vocabularies.tokenizer_files import WordPiece

    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    letters = [chr(code) for code in range(97, 123)] + list("0123456789()’—;….")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "open", "##ed", *letters]
    path.write_text("\n".join([*names, *(f"##{letter}" for letter in letters)]), encoding="utf-8")
    return WordPiece(path)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """SentencePiece as LLaMA and Mistral have it: every space counts, and bytes for the rest."""
    import io

    import sentencepiece

    model, path = io.BytesIO(), tmp_path_factory.mktemp("spaced") / "spaced.model"
    texts = ["the owner opened one of the first cafes in 1999 and it was naive"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=310,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return SentencePiece(path, num_sentinels=0)


@pytest.fixture(params=["Bytes", "pieces", "spaced", "wordpiece"])
def vocabulary(request):
    return Bytes() if request.param == "Bytes" else request.getfixturevalue(request.param)


def arrays(column, rows, vocabulary, feature="inputs"):
    return column.arrays(feature, rows, vocabulary=vocabulary)


def test_a_string_is_a_template_encoded_at_once(vocabulary):
    rows = [{"a": TEXT}, {"a": "the owner"}]
    features = arrays(as_column("inputs", "x {a}"), rows, vocabulary)["inputs"]
    assert [item.tolist() for item in features] == [
        vocabulary.encode("x " + row["a"]) for row in rows
    ]
    assert features[0].dtype == np.int32


def test_what_is_no_column_is_refused():
    with pytest.raises(InputError, match=r"features\['inputs'\] is 3: must be a template"):
        as_column("inputs", 3)


@pytest.mark.parametrize(
    ("result", "order"),
    [
        ({"b", "a"}, ["a", "b"]),
        ({"10", "9", "-1"}, ["-1", "9", "10"]),
        ({"1", "x"}, ["1", "x"]),
        ({"1", "01", "2"}, ["01", "1", "2"]),
    ],
)
def test_classes_are_in_order(result, order):
    column = Class("label").with_classes(result)
    assert column.classes == order
    rows = [{"label": name} for name in order]
    features = arrays(column, rows, Bytes(), feature="labels")["labels"]
    np.testing.assert_array_equal(features, np.arange(len(order))[:, None])


def test_given_classes_stay():
    column = Class("label", classes=["b", "a", 3]).with_classes(["a"])
    assert column.classes == ["b", "a", "3"]
    assert list(column.classes_in({"label": 3})) == ["3"]


def test_numbers_are_floats():
    column = Number(["x", "y"])
    features = arrays(column, [{"x": "1.5", "y": 2}], Bytes())["inputs"][0]
    np.testing.assert_array_equal(features, np.array([1.5, 2], np.float32))
    assert features.dtype == np.float32
    assert column.problem({"x": "1.5", "y": 2}) == ""
    assert "'many', not a number" in column.problem({"x": "many", "y": 2})
    for large in ("nan", "1e39", 10**400, -(10**400), "9" * 400):
        assert "not a finite number" in column.problem({"x": large, "y": 2})
    assert column.problem({"x": "3.4e38", "y": 2}) == ""
    assert column.problem({"x": 1}) == "column 'y' is missing"
    assert column.problem({"x": 1, "y": None}) == "column 'y' is null"


def test_missing_columns_name_the_nearest():
    for column, field in (
        (Class("lable"), "Class.column = 'lable'"),
        (Number("lable"), "Number.column"),
        (Tags("lable", "label"), "Tags.words_column"),
        (Tags("label", "lable"), "Tags.tags_column"),
        (Answer("label", "lable"), "Answer.answer"),
        (Answer("lable", "label"), "Answer.context"),
        (Answer("{lable}", "label"), "template"),
    ):
        with pytest.raises(InputError, match=f"{field}.*did you mean label"):
            column.check(["label", "text"])
    with pytest.raises(InputError, match="no slot"):
        Answer("a {{b}}", "label").check(["label"])


def test_tags_are_at_the_first_token_of_each_word(vocabulary):
    words, tags = ["the", "owner", "opened", "1999"], ["O", "B", "O", "A"]
    column = Tags("words", "tags").with_classes(tags)
    assert column.classes == ["O", "A", "B"]
    features = arrays(column, [{"words": words, "tags": tags}] * 2, vocabulary)
    ids, labels = features["inputs"][1], features["labels"][1]
    assert ids.tolist() == vocabulary.encode(" ".join(words))
    at = np.flatnonzero(labels >= 0)
    assert labels[at].tolist() == [0, 2, 0, 1]
    starts = [*at, len(ids)]
    for word, first, end in zip(words, starts, starts[1:], strict=False):
        assert vocabulary.decode(ids[first:end]).strip() == word


def test_tags_are_at_words_that_have_a_token(vocabulary):
    words, tags = ["the", "", "Zoë", "the  owner", "né"], ["A", "O", "B", "C", "D"]
    column = Tags("words", "tags").with_classes(tags)
    features = arrays(column, [{"words": words, "tags": tags}], vocabulary)
    ids, labels = features["inputs"][0], features["labels"][0]
    assert ids.tolist() == vocabulary.encode(" ".join(words))
    _, offsets = vocabulary.encode_with_offsets(" ".join(words))
    text = " ".join(words)
    for word, tag in zip(words, tags, strict=True):
        if word:
            (at,) = np.flatnonzero(labels == column.classes.index(tag))
            first, _ = offsets[at]
            assert text[first:].lstrip().startswith(word) or first == text.index(word)


def test_tags_may_be_texts_and_must_be_as_many_as_words():
    column = Tags("words", "tags")
    assert column.problem({"words": "a b", "tags": "O O"}) == ""
    assert column.problem({"words": ["a", "b"], "tags": ["O"]}) == "2 words and 1 tags"
    assert "'tags' is '3', not a list" in column.problem({"words": "a", "tags": 3})
    assert column.problem({"words": ["a", None], "tags": "O O"}) == "column 'words' holds a null"
    assert "column 'words' is " in column.problem({"words": {"a": 1}, "tags": "O"})
    features = arrays(column.with_classes(["O"]), [{"words": "", "tags": ""}], Bytes())
    assert features["inputs"][0].size == features["labels"][0].size == 0


ANSWERS = ["naïve", "café", "Zoë", "opened", "in 1999", "ﬁrst", "one", "cafés.", "The", TEXT]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("context", ["text", "question: {q}? {text} (end)"])
def test_answers_are_spanned_by_the_fewest_tokens(vocabulary, answer, context):
    row = {"q": "who is naïve, the café", "text": TEXT, "answer": answer}
    features = arrays(Answer(context, "answer"), [row], vocabulary)
    ids, (first, last) = features["inputs"][0].tolist(), features["labels"][0].tolist()
    text = context.format(**row) if "{" in context else TEXT
    assert ids == vocabulary.encode(text)
    assert 0 <= first <= last < len(ids)
    begin = text.rindex(TEXT) + TEXT.index(answer)
    # Without its first or last token, the span would lack a part of the answer.
    _, offsets = vocabulary.encode_with_offsets(text)
    assert offsets[first][0] <= begin < offsets[first][1]
    assert offsets[last][0] < begin + len(answer) <= offsets[last][1]
    if vocabulary.unk_id not in ids[first : last + 1] and answer.isascii():
        assert answer.lower() in vocabulary.decode(ids[first : last + 1]).lower()


def test_a_start_tells_which_occurrence():
    row = {"text": "a cat, a cat", "answer": "cat", "start": "9"}
    labels = arrays(Answer("text", "answer", start="start"), [row], Bytes())["labels"][0]
    assert labels.tolist() == [9, 11]
    labels = arrays(Answer("text", "answer"), [row], Bytes())["labels"][0]
    assert labels.tolist() == [2, 4]


@pytest.mark.parametrize("answer", ["", None])
def test_no_answer_is_minus_one(answer):
    row = {"text": "a cat", "answer": answer, "start": None}
    column = Answer("text", "answer", start="start")
    assert column.problem(row) == ""
    assert arrays(column, [row], Bytes())["labels"][0].tolist() == [-1, -1]


def test_answers_must_be_in_the_context():
    column = Answer("text", "answer", start="start")
    assert Answer("text", "answer").problem({"text": "a", "answer": "b"}) == (
        "the answer 'b' is not in the context"
    )
    row = {"text": "a cat", "answer": "cat"}
    assert "not at character 1" in column.problem(row | {"start": 1})
    assert "not at character -3" in column.problem(row | {"start": -3})
    assert "is 'x', not an integer" in column.problem(row | {"start": "x"})
    for start in (2.5, "1_0", True, None):
        assert f"is {start!r}, not an integer" in column.problem(row | {"start": start})
    assert "is inf, not an integer" in column.problem(row | {"start": float("inf")})
    assert column.problem(row | {"start": 2}) == column.problem(row | {"start": 2.0}) == ""


def test_a_vocabulary_without_offsets_says_so():
    class Own(Vocabulary):
        def encode(self, text):
            return [1]

    with pytest.raises(InputError, match="Own does not say which characters"):
        arrays(Answer("a", "b"), [{"a": "x", "b": "x"}], Own())
