"""Tokenizers of Hugging Face folders: the ids that transformers gives, there and back.

`tokenizer_cases/make.py` made the folders and asked transformers.
"""

import base64
import json
from pathlib import Path

import pytest

from t5lite.data import (
    Bytes,
    HuggingFaceTokenizer,
    MappedSentencePiece,
    SentencePiece,
    WordPiece,
    load_vocabulary,
)
from t5lite.errors import InputError
from t5lite.framing import Frame
from t5lite.interop.huggingface.vocabularies import read_vocabulary
from t5lite.interop.huggingface.written_tokenizers import write_vocabulary

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")

CASES = json.loads((Path(__file__).parent / "tokenizer_cases" / "cases.json").read_text())["cases"]
TEXTS = [text for text, *_ in CASES["gpt2"]["texts"]]
NAMES = next(text for text in TEXTS if text.startswith("word </s>"))


def folder_of(name, root):
    for file, content in CASES[name]["files"].items():
        raw = content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])
        (root / file).write_bytes(raw)
    return root


def change(folder, file="tokenizer_config.json", **options):
    path = folder / file
    given = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(given | options))


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_transformers(name, tmp_path):
    case, vocabulary = CASES[name], read_vocabulary(folder_of(name, tmp_path))
    for text, alone, framed, said in case["texts"]:
        ids = vocabulary.encode(text)
        assert (ids, vocabulary.frame(ids)) == (alone, framed), text
        assert vocabulary.encode_all([text]) == [ids]
        if not {vocabulary.unk_id, vocabulary.eos_id} & set(ids):
            assert vocabulary.decode(ids) == said
    bert = name.startswith("bert")
    assert vocabulary.eos_id == (3 if bert else case["eos"])
    assert vocabulary.pad_id == (-1 if case["pad"] is None else case["pad"])
    if case["mask"] is not None:
        assert vocabulary.mask_id == case["mask"]
    for text, framed in case.get("targets", []):
        if text != NAMES:
            assert vocabulary.targets.frame(vocabulary.targets.encode(text)) == framed


def same(one, other):
    for text in TEXTS:
        assert one.encode(text) == other.encode(text)
        assert one.frame(one.encode(text)) == other.frame(other.encode(text))
    for name in ("size", "num_sentinels", "eos_id", "unk_id", "pad_id"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("bos_id", "mask_id"):
        assert getattr(one, name, None) == getattr(other, name, None), name
    assert [one.piece(token) for token in range(one.size)] == [
        other.piece(token) for token in range(other.size)
    ]


@pytest.mark.parametrize("name", CASES)
def test_written_and_saved_vocabularies_give_the_same_ids(name, tmp_path):
    (tmp_path / "read").mkdir()
    vocabulary = read_vocabulary(folder_of(name, tmp_path / "read"))
    write_vocabulary(tmp_path / "written", vocabulary)
    again = read_vocabulary(tmp_path / "written")
    assert type(again) is type(vocabulary)
    same(vocabulary, again)
    vocabulary.save(tmp_path / "saved")
    loaded = load_vocabulary(tmp_path / "saved")
    same(vocabulary, loaded)
    assert loaded.fingerprint == vocabulary.fingerprint
    files = {path.name for path in (tmp_path / "written").iterdir()}
    assert {"tokenizer_config.json", "special_tokens_map.json"} <= files
    config = json.loads((tmp_path / "written" / "tokenizer_config.json").read_text())
    given = json.loads(CASES[name]["files"]["tokenizer_config.json"])["tokenizer_class"]
    expected = "PreTrainedTokenizerFast" if "tokenizer.json" in files else given
    assert config["tokenizer_class"] == expected
    assert config["eos_token"] == vocabulary.piece(vocabulary.eos_id)


def test_sentinels_an_offset_and_a_frame_are_written(tmp_path):
    vocab = folder_of("bert", tmp_path) / "vocab.txt"
    bare = json.loads(CASES["gpt2_json"]["files"]["tokenizer.json"])
    bare = json.dumps(bare | {"post_processor": None})
    made = {
        "words": WordPiece(vocab, num_sentinels=3),
        "gpt2": HuggingFaceTokenizer.from_json(bare, "bare", num_sentinels=2),
        "shifted": HuggingFaceTokenizer.from_json(bare, "bare", num_sentinels=2, offset=1),
        "bytes": Bytes(7),
    }
    for name, vocabulary in made.items():
        write_vocabulary(tmp_path / name, vocabulary)
        found = read_vocabulary(tmp_path / name)
        assert (found.size, found.num_sentinels) == (vocabulary.size, vocabulary.num_sentinels)
        assert found.eos_id == vocabulary.eos_id
        for text in TEXTS[:-2]:
            ids = vocabulary.encode(text)
            assert (found.encode(text), found.frame(ids)) == (ids, vocabulary.frame(ids))
            assert found.decode(ids) == vocabulary.decode(ids)
        sentinel = vocabulary.sentinel(1)
        assert found.sentinel(1) == sentinel
        if name != "bytes":
            assert found.encode("<extra_id_1>") == vocabulary.encode("<extra_id_1>") == [sentinel]
    write_vocabulary(tmp_path / "decoder", made["gpt2"], frame=Frame((5,)))
    found = read_vocabulary(tmp_path / "decoder")
    assert found.frame == Frame((5,))
    twice = HuggingFaceTokenizer(tmp_path / "shifted" / "tokenizer.json", offset=1)
    with pytest.raises(InputError, match="has a '<pad>' already"):
        write_vocabulary(tmp_path / "again", twice)


def test_an_offset_moves_templates_and_unigrams_too(tmp_path):
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("▁a", -1.0), ("b", -2.0)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    ends = [("</s>", 1), ("<s>", 2)]
    template = tokenizers.processors.TemplateProcessing("<s> $A </s>", None, ends)
    both = tokenizers.processors.Sequence([tokenizers.processors.ByteLevel(), template])
    for processor in (template, tokenizers.processors.RobertaProcessing(*ends), both):
        tokenizer.post_processor = processor
        shifted = HuggingFaceTokenizer.from_json(tokenizer.to_str(), "unigram", offset=1)
        assert shifted.frame(shifted.encode("ab?")) == [3, 4, 5, 1, 2]
        write_vocabulary(tmp_path, shifted)
        found = read_vocabulary(tmp_path)
        assert found.frame(found.encode("ab?")) == [3, 4, 5, 1, 2]
        assert (found.unk_id, found.pad_id) == (1, 0)


def test_tokens_that_were_added_have_their_ids(tmp_path):
    folder = folder_of("gpt2_json", tmp_path)
    size = read_vocabulary(folder).size
    change(folder, "added_tokens.json", **{"<new>": size, "<newer>": size + 1})
    found = read_vocabulary(folder)
    assert found.encode("a<newer><new>")[1:] == [size + 1, size]
    assert found.size == size + 2
    for wrong in (size + 5, 7):
        (folder / "added_tokens.json").write_text(json.dumps({"<new>": wrong}))
        message = rf"adds '<new>' as id {wrong}, and in tokenizer\.json it is {size}"
        with pytest.raises(InputError, match=message):
            read_vocabulary(folder)
    folder = tmp_path / "t5"
    folder.mkdir()
    folder_of("t5", folder)
    own = read_vocabulary(folder)
    assert (type(own), own.num_sentinels) == (HuggingFaceTokenizer, 5)
    change(folder, added_tokens_decoder={str(own.size - 1): {"content": "<extra_id_0>"}})
    assert read_vocabulary(folder).size == own.size
    change(folder, added_tokens_decoder={str(own.size): {"content": "<new>"}})
    assert read_vocabulary(folder).piece(own.size) == "<new>"
    change(folder, added_tokens_decoder={str(own.size + 1): {"content": "<new>"}})
    with pytest.raises(InputError, match=r"adds '<new>' as id .* save it as tokenizer\.json"):
        read_vocabulary(folder)


def test_the_model_names_the_tokenizer_where_nothing_else_does(tmp_path):
    folder = folder_of("roberta", tmp_path)
    expected = read_vocabulary(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="a tokenizer of no named class gives its pieces"):
        read_vocabulary(folder)
    change(folder, "config.json", model_type="roberta")
    same(read_vocabulary(folder), expected)
    change(folder, "special_tokens_map.json", eos_token={"content": "<mask>", "lstrip": False})
    assert read_vocabulary(folder).eos_id == expected.mask_id


def test_marian_writes_with_the_pieces_of_its_target(tmp_path):
    vocabulary = read_vocabulary(folder_of("marian", tmp_path))
    assert isinstance(vocabulary, MappedSentencePiece)
    code = vocabulary.encode(">>deu<<the cat")
    assert code == [2, *vocabulary.encode("the cat")]
    assert vocabulary.encode(">>xyz<<") != vocabulary.encode(">>deu<<")
    change(tmp_path, separate_vocabs=True)
    with pytest.raises(InputError, match="separate_vocabs: sources and targets have ids of their"):
        read_vocabulary(tmp_path)


def test_what_has_no_tokenizer_or_an_unknown_one(tmp_path):
    assert read_vocabulary(tmp_path) is None
    folder = folder_of("xlm_roberta", tmp_path)
    change(folder, tokenizer_class="BarthezTokenizerFast")
    with pytest.raises(InputError, match="a BarthezTokenizer gives its pieces is not known; save"):
        read_vocabulary(folder)
    change(folder, tokenizer_class="PegasusTokenizer")
    with pytest.raises(InputError, match="begins with the pieces <unk>, <s>, </s>, not with <pad>"):
        read_vocabulary(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is damaged"):
        read_vocabulary(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not a tokenizer\.json, or is damaged"):
        read_vocabulary(folder)


def test_what_transformers_has_no_class_for_is_refused(tmp_path):
    read = read_vocabulary(folder_of("llama", tmp_path))
    llama = SentencePiece(tmp_path / "tokenizer.model", num_sentinels=0)
    assert (llama.pad_id, llama.eos_id) == (-1, 2)
    write_vocabulary(tmp_path / "sentencepiece", llama)
    found = read_vocabulary(tmp_path / "sentencepiece")
    for text in TEXTS:
        if text != NAMES:
            assert found.encode(text) == llama.encode(text)
            assert found.decode(found.encode(text)) == llama.decode(llama.encode(text))
    ids = {read.piece(number): number for number in range(read.size)}
    tokens = {"eos": "</s>", "unk": "<unk>"}
    own = MappedSentencePiece(tmp_path / "tokenizer.model", ids, tokens=tokens)
    with pytest.raises(InputError, match="origin must be one of Marian"):
        write_vocabulary(tmp_path / "no", own)
    with pytest.raises(InputError, match="dict has no counterpart"):
        write_vocabulary(tmp_path / "no", {})
    assert not (tmp_path / "no").exists()
