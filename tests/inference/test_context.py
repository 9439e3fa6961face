"""Text in context: tokens as they stand behind a text, and the text that tokens add to one."""

import io

import numpy as np
import pytest

from t5lite.data import Bytes, HuggingFaceTokenizer, SentencePiece
from t5lite.inference.context import (
    certain,
    continuation,
    split_pair,
    text_after,
    token_texts,
    without_last_bytes,
)

tokenizers = pytest.importorskip("tokenizers")
sentencepiece = pytest.importorskip("sentencepiece")

LINES = [
    "The river runs past the old mill and under the stone bridge.",
    "def f(x):\n    return x",
    "Paris is far away, and so is Paraguay. Zürich, café, naïve.",
    "one, two, three 1 2 3 2024 don't wouldn't 'social' is",
] * 3


@pytest.fixture(scope="module", params=["byte BPE", "SentencePiece", "bytes"])
def vocabulary(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    if request.param == "bytes":
        return Bytes()
    if request.param == "SentencePiece":
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for text in LINES for line in text.split("\n")),
            model_writer=out,
            vocab_size=380,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=-1,
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(out.getvalue())
        return SentencePiece(folder / "tokenizer.model", num_sentinels=0)
    created = tokenizers.Tokenizer(tokenizers.models.BPE())
    created.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    created.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    created.train_from_iterator(LINES, trainer)
    created.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(folder / "tokenizer.json")


PAIRS = [
    ("The river runs", " past the mill"),
    ("def f(x):", "\n    return x"),
    ("def f(x):\n", "    return x"),
    ("The river", "runs"),
    ("Par", "is is far"),
    ("2 + 2 =", " 4"),
    ("Z", "ürich"),
]


@pytest.mark.parametrize(("text", "more"), PAIRS, ids=repr)
def test_a_text_and_its_continuation_join(vocabulary, text, more):
    ids = continuation(text, more, vocabulary)
    prompt = vocabulary.encode(text)
    assert text_after(prompt, ids, vocabulary) == more
    whole = vocabulary.encode(text + more)
    if whole[: len(prompt)] == prompt:
        assert ids == whole[len(prompt) :]


@pytest.mark.parametrize(("text", "more"), [*PAIRS, ("The river ", "runs past"), ("Pari", "s")])
def test_a_pair_is_the_whole_text_s_tokens(vocabulary, text, more):
    before, target = split_pair(text, more, vocabulary)
    assert before + target == vocabulary.encode(text + more)
    assert target
    prompt = vocabulary.encode(text)
    if (before + target)[: len(prompt)] == prompt:
        assert before == prompt


def test_token_bytes_equal_decoding(vocabulary):
    texts = token_texts(vocabulary)
    for text in (" Zürich, café", " don't 'social' 2024 ☃"):
        ids = vocabulary.encode("a" + text)[len(vocabulary.encode("a")) :]
        assert b"".join(texts[token] for token in ids) == text.encode()


def test_partial_characters_are_not_text(vocabulary):
    before, snowman = vocabulary.encode("a"), continuation("a", "☃", vocabulary)
    for size in range(len(snowman)):
        assert certain(text_after(before, snowman[:size], vocabulary), ()) == ""
    assert text_after(before, snowman, vocabulary) == "☃"


def test_no_part_of_a_stop_is_certain():
    assert certain("an answer, th", ["the", "answer, then"]) == "an "
    assert certain("xab", ["bc", "abd"]) == "x"
    assert certain("done.", ["stop"]) == "done."


def test_text_that_was_certain_stays_though_decoding_cleans_it_up(tmp_path):
    words = ["she", "does", "n", "'", "t", "ask", ".", "it", "s", "?"]
    created = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}))
    created.save(str(tmp_path / "tokenizer.json"))
    cleaning = HuggingFaceTokenizer(tmp_path / "tokenizer.json", eos="she", cleans_up=True)
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(200):
        ids = rng.integers(1, len(words), 12).tolist()
        whole, texts = cleaning.decode(ids), [cleaning.decode(ids[:size]) for size in range(12)]
        assert all(whole.startswith(certain(text, (), cleans_up=True)) for text in texts)
        changed += not all(whole.startswith(text) for text in texts)
    assert changed


def test_certain_text_stays_after_invalid_bytes(tmp_path):
    ids = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": 256, "▁w": 257}
    created = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [], byte_fallback=True))
    steps = tokenizers.decoders
    created.decoder = steps.Sequence([steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse()])
    created.save(str(tmp_path / "tokenizer.json"))
    vocabulary = HuggingFaceTokenizer(tmp_path / "tokenizer.json", eos="</s>")
    tokens = np.array([257, 0x0A, 257, 0x41, 0xF0, 0x9F, 257, 0xC3, 0xBC, 257])
    whole, changed = vocabulary.decode(tokens), 0
    for size in range(len(tokens)):
        remaining = without_last_bytes(tokens[:size], vocabulary)
        assert whole.startswith(vocabulary.decode(remaining))
        changed += not whole.startswith(certain(vocabulary.decode(tokens[:size]), ()))
    assert changed
    assert whole.endswith("ü w")
