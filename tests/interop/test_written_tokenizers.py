"""Exported tokenizers give the ids that the model reads, and exported models write the same.

Vocabulary × topology, with transformers as the oracle, which needs torch.
"""

import importlib.util
import random

import jax
import pytest
from saved_models import save_model

import t5lite
from t5lite.data import Bytes, HuggingFaceTokenizer, WordPiece, train_sentencepiece
from t5lite.inference.gaps import encode
from t5lite.inference.request import Request
from t5lite.interop.huggingface.written_tokenizers import write_vocabulary
from t5lite.models import Model, override
from t5lite.objectives import CausalLM, PrefixLM, Seq2Seq, bind

installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]'")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = """The river runs past the old mill, and the miller's daughter counts: one, two (three).
Zürich, café, naïve, façade, Straße. Numbers 12 and 1999 count <c> {d} a/b.
def f(x):
    return x + 1  # comment
""".splitlines()
TEXTS = [
    "The river runs",
    "  two  spaces ",
    "a café\nand\tÅ 🙂 1999",
    "<c> a/b",
    ".",
    "½ ﬁ \u3000x",
]
GAPS = ["a <extra_id_0> b", "a<extra_id_1>b <extra_id_0>", "<extra_id_0>"]


def own_json():
    """A byte-level tokenizer.json without a template, whose id 0 is a token of texts."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(["</s>"])
    return made.to_str()


def word_pieces(folder):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({*"".join(CORPUS).lower()} - {" "})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "the", "river"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return WordPiece(folder / "vocab.txt", num_sentinels=2)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    return {
        "sentencepiece": train_sentencepiece(CORPUS * 9, 112, num_sentinels=5, cache_folder=folder),
        "json": HuggingFaceTokenizer.from_json(own_json(), "own"),
        "json with sentinels": HuggingFaceTokenizer.from_json(own_json(), "own", num_sentinels=3),
        "json with an offset": HuggingFaceTokenizer.from_json(own_json(), "own", offset=1),
        "word pieces": word_pieces(folder),
        "bytes": Bytes(5),
    }


NAMES = [
    "sentencepiece",
    "json",
    "json with sentinels",
    "json with an offset",
    "word pieces",
    "bytes",
]
SMALL = {"decoder": "gpt_nano", "encoder": "bert_nano", "encoder_decoder": "t5_1_1_nano"}
SIZES = {"embed": 32, "*.num_layers": 1, "*.blocks.*.attention.head_dim": 8}
SIZES |= {"*.blocks.*.mlp.hidden": 24}
PADDING = 16  # rows of the embedding that stand for no token, and are never written


def exported(folder, topology, vocabulary, prompts=None):
    """Writes a model with a vocabulary as a run and as Hugging Face's; returns both opened."""
    import transformers

    sizes = dict(SIZES) | {"vocab": vocabulary.size + PADDING}
    if topology == "encoder_decoder":
        sizes["decoder.blocks.*.cross_attention.head_dim"] = 8
    if topology == "decoder":
        sizes["start_id"] = 0
    model = Model(override(SMALL[topology], sizes))
    params = model.init(jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf * 6 if leaf.ndim > 1 else leaf, params)
    if "projection" in params.get("lm_head", {}):  # untied: what is never written is the likeliest
        kernel = params["lm_head"]["projection"]["kernel"]
        params["lm_head"]["projection"]["kernel"] = kernel.at[:, vocabulary.size :].multiply(9)
    else:
        table = params["token_embedding"]["embedding"]
        params["token_embedding"]["embedding"] = table.at[vocabulary.size :].multiply(9)
    for kind in ("t5lite", "huggingface"):
        save_model(folder / kind, model, params, kind=kind, vocabulary=vocabulary, prompts=prompts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "huggingface")
    return t5lite.load(folder / "t5lite", devices=jax.devices()[:1]), tokenizer


def read(loaded, text):
    """Returns the ids that a model reads, a start token included."""
    if loaded.model.topology == "encoder":
        return loaded.vocabulary.frame(loaded.vocabulary.encode(text))
    ids = list(Request.from_text(text, loaded.reader()).ids)
    return [loaded.spec.start_id, *ids] if loaded.model.topology == "decoder" else ids


CASES = [(name, topology) for name in NAMES for topology in SMALL]


@pytest.mark.parametrize(("name", "topology"), CASES)
def test_an_exported_tokenizer_gives_the_ids_that_the_model_reads(
    name, topology, vocabularies, tmp_path
):
    vocabulary = vocabularies[name]
    loaded, tokenizer = exported(tmp_path, topology, vocabulary)
    texts = [*TEXTS, *(GAPS if vocabulary.num_sentinels and topology != "encoder" else [])]
    if name == "bytes":
        texts = [text for text in texts if "<extra" not in text]
    for text in texts:
        ids = read(loaded, text)
        assert tokenizer(text)["input_ids"] == ids, text
        said = loaded.vocabulary.encode(text)
        if not {loaded.vocabulary.eos_id, loaded.vocabulary.unk_id} & {*said}:
            assert tokenizer.decode(said) == loaded.vocabulary.decode(said)
    again = t5lite.load(tmp_path / "huggingface", devices=jax.devices()[:1])
    assert again.spec.start_id == loaded.spec.start_id
    for text in texts:
        assert read(again, text) == read(loaded, text)


@pytest.mark.parametrize("objective", [Seq2Seq(), PrefixLM(), CausalLM()], ids=type)
def test_the_template_is_that_of_the_training(objective, vocabularies, tmp_path):
    model = Model(override("gpt_nano", SIZES | {"vocab": 112, "start_id": 0}))
    vocabulary = vocabularies["sentencepiece"]
    prompts = bind(objective, model).prompts(vocabulary)
    if prompts.of(None).bidirectional:
        with pytest.warns(UserWarning, match="see its inputs in both directions"):
            loaded, tokenizer = exported(tmp_path, "decoder", vocabulary, prompts)
    else:
        loaded, tokenizer = exported(tmp_path, "decoder", vocabulary, prompts)
    ends = [vocabulary.eos_id] if isinstance(objective, Seq2Seq) else []
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == [0, *vocabulary.encode(text), *ends]
        assert tokenizer(text)["input_ids"] == read(loaded, text)


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_decoder_continues_as_the_run_does(name, vocabularies, tmp_path):
    import transformers

    loaded, tokenizer = exported(tmp_path, "decoder", vocabularies[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface")
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = ["the river", "a cat and", "one, two"]
    ours = loaded.generate(texts, max_new_tokens=6)
    for text, answer in zip(texts, ours, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        written = model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=6,
            do_sample=False,
        )[0, ids["input_ids"].shape[1] :]
        (tokens,) = loaded.answers([text], max_new_tokens=6)[0]
        assert written.tolist() == tokens.tokens.tolist()
        (said,) = pipeline(text, max_new_tokens=6, do_sample=False, return_full_text=False)
        said = said["generated_text"].removesuffix("</s>").removesuffix("[SEP]")
        if "\N{REPLACEMENT CHARACTER}" not in said:  # bytes that are no text show in their ways
            assert said.strip().removeprefix("##") == answer.strip()


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_encoder_decoder_writes_as_the_run_does(name, vocabularies, tmp_path):
    import transformers

    loaded, tokenizer = exported(tmp_path, "encoder_decoder", vocabularies[name])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "huggingface")
    texts = ["the river", "a cat and", "one, two"]
    for text, (answer,) in zip(texts, loaded.answers(texts, max_new_tokens=6), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, 1:].tolist()
        assert written == answer.tokens.tolist()


def test_sentencepiece_is_followed_on_any_text(vocabularies, tmp_path):
    import transformers

    vocabulary = vocabularies["sentencepiece"]
    write_vocabulary(tmp_path, vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    draw = random.Random(0)
    parts = [*"abcdeft  \n\t<>/éÅ你🙂▁\u200b\u00a0\u3000'.½ﬁ", "the ", "  ", " <extra_id_0> "]
    for _ in range(2000):
        text = "".join(draw.choices([*parts, "<extra_id_3>"], k=draw.randint(0, 12)))
        assert tokenizer(text)["input_ids"] == vocabulary.frame(encode(text, vocabulary)), text
