"""Tokenizer × files × switches: ids and decoded texts are those of transformers.

A case is a small tokenizer in the files that a Hugging Face folder may have, and a switch of its
`tokenizer_config.json`. Needs transformers and sentencepiece.
"""

import importlib.util
import io
import json
import warnings

import pytest

from t5lite.errors import InputError
from t5lite.interop.huggingface.vocabularies import read_vocabulary

installed = all(
    importlib.util.find_spec(name) for name in ("torch", "transformers", "tokenizers", "google")
)
pytestmark = pytest.mark.skipif(not installed, reason="pip install 't5lite[parity]'")
if installed:
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

CORPUS = (
    """The river runs past the old mill, and the miller's daughter counts the boats: one, two.
She doesn't know who sails them; she wouldn't ask. "Where do you go?" he said. It's a quiet place!
Zürich, café, naïve, façade, Straße, Ärger and jalapeño. Numbers such as 12 and 1999 count.
UPPER and lower; words ; spaced . out , like 'this' . 你好 世界
""".splitlines()
    * 5
)
TEXTS = [
    "The river runs past the mill.",
    "Zürich CAFÉ Naïve façade İstanbul Straße",
    "  two leading  and   several spaces ",
    " ",
    "",
    "a line\nanother\n\n\tand a tab\r\n",
    "你好 world 世界",
    "emoji 🙂 and 漢字",
    "don't ask , she said . 'quote' wouldn't !",
    "zero\u200bwidth, no\u00a0break, ▁underline",
    "x<new>y <new> z <New>  <new>",
    "a <mask> b [MASK] c [mask]",
    "mid </s> text <s> and <unk> [SEP] <eos> <|endoftext|> <pad>",
    "a <extra_id_0> b<extra_id_1>c",
    "``quoted''",
]
NEW = {"content": "<new>", "single_word": False, "lstrip": False, "rstrip": False}


def spm(size=150, model_type="unigram", **options):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=size,
        model_type=model_type,
        minloglevel=2,
        **({"hard_vocab_limit": False} if model_type == "unigram" else {}),
        **options,
    )
    return model.getvalue()


def byte_level(special, last=()):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(list(last))
    return made


def word_pieces(*, lowercase):
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=200,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    return made


def bpe_files(made):
    model = json.loads(made.to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    ids = json.dumps(made.get_vocab(), ensure_ascii=False)
    return {"vocab.json": ids.encode(), "merges.txt": (merges + "\n").encode()}


def whole(made):
    return {"tokenizer.json": made.to_str().encode()}


def vocab_txt(made):
    ids = made.get_vocab()
    return {"vocab.txt": ("\n".join(sorted(ids, key=ids.get)) + "\n").encode()}


def gpt2():
    return byte_level(["<|endoftext|>"])


def llama3():
    """Byte-level BPE with a template, as LLaMA 3's."""
    made = byte_level(["<|begin_of_text|>", "<|end_of_text|>"])
    begin = [("<|begin_of_text|>", 0)]
    template = processors.TemplateProcessing("<|begin_of_text|> $A", None, begin)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made


def llama_spm():
    options = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "byte_fallback": True}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return spm(400, "bpe", **options)


def gemma_spm():
    options = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    symbols = {"user_defined_symbols": ["<mask>", "<start_of_turn>", "\n", "▁▁"]}
    return spm(410, "bpe", add_dummy_prefix=False, **options, **symbols)


def marian():
    import sentencepiece

    ends = {"pad_id": -1, "bos_id": -1, "eos_id": 0, "unk_id": 1}
    models = {"source.spm": spm(90, **ends), "target.spm": spm(80, "bpe", **ends)}
    pieces = ["</s>", "<unk>", ">>deu<<"]
    for model in models.values():
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces += [processor.id_to_piece(at) for at in range(len(processor))]
    pieces = list(dict.fromkeys([*pieces, "<pad>"]))
    ids = {piece: at for at, piece in enumerate(pieces)}
    return models | {"vocab.json": json.dumps(ids).encode()}


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
ALBERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
ALBERT |= {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}


def config(kind=None, **options):
    return options | ({"tokenizer_class": kind} if kind else {})


def cases():
    """Returns files and a `tokenizer_config.json` by name, and whether to make it whole first."""
    found = {}

    def table(name, files, kind, switches, model_type=None, first=None):
        for switch, options in {"plain": {}, **switches}.items():
            given = {**(first or {}), **config(kind, **options)}
            found[f"{name}:{switch}"] = files, given, model_type, False
            found[f"{name}, saved:{switch}"] = files, given, model_type, True

    def alone(name, files, options, model_type=None):
        found[name] = files, options, model_type, False

    case = {
        "cased": {"do_lower_case": False},
        "lower": {"do_lower_case": True},
        "keeps accents": {"do_lower_case": True, "strip_accents": False},
        "strips accents": {"do_lower_case": False, "strip_accents": True},
        "chinese": {"tokenize_chinese_chars": False},
        "cleans up": {"clean_up_tokenization_spaces": True},
        "added": {"added_tokens_decoder": {"200": NEW}},
    }
    space = {
        "prefix space": {"add_prefix_space": True},
        "no prefix space": {"add_prefix_space": False},
        "bos": {"add_bos_token": True},
        "no bos": {"add_bos_token": False},
        "bos and eos": {"add_bos_token": True, "add_eos_token": True},
        "cleans up": {"clean_up_tokenization_spaces": True},
    }
    for lowercase in (True, False):
        words = word_pieces(lowercase=lowercase)
        name = "uncased" if lowercase else "cased"
        table(f"bert {name} vocab.txt", vocab_txt(words), "BertTokenizer", case)
        table(f"bert {name} json", whole(words), "BertTokenizer", case)
        table(f"bert {name} json plainly", whole(words), "PreTrainedTokenizerFast", case)
        alone(f"bert {name} json alone", whole(words), {}, "bert")
        alone(f"electra {name} json", whole(words), config("ElectraTokenizer"), "electra")
        alone(f"convbert {name} json", whole(words), config("ConvBertTokenizer"), "bert")
        alone(f"bert {name} json nameless", whole(words), {"do_lower_case": False})
    added = {"added": {"added_tokens_decoder": {"340": NEW}}}
    table("gpt2 files", bpe_files(gpt2()), "GPT2Tokenizer", space | added)
    table("gpt2 json", whole(gpt2()), "GPT2TokenizerFast", space | added)
    alone("gpt2 json alone", whole(gpt2()), {}, "gpt2")
    table("neox json", whole(gpt2()), "GPTNeoXTokenizer", space, "gpt_neox")
    table("pythia json", whole(gpt2()), "PreTrainedTokenizerFast", space, "gpt_neox")
    table("llama3 json", whole(llama3()), "PreTrainedTokenizerFast", space, "llama")
    table("llama3 named llama json", whole(llama3()), "LlamaTokenizer", space, "llama")
    alone("llama3 json alone", whole(llama3()), {}, "llama")
    table("modernbert json", whole(llama3()), "PreTrainedTokenizerFast", space, "modernbert")
    roberta = byte_level(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    names = {"mask_token": {"__type": "AddedToken", "lstrip": True, **NEW, "content": "<mask>"}}
    mask = {"mask with a space": names}
    for kind in ("RobertaTokenizer", "BartTokenizer"):
        table(f"{kind} files", bpe_files(roberta), kind, space | mask)
        table(f"{kind} json", whole(roberta), kind, space | mask)
    opt = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    table("opt files", bpe_files(roberta), "GPT2Tokenizer", space, "opt", opt)
    sentinels = [f"<extra_id_{number}>" for number in range(5)]
    t5 = {
        "extra": {"extra_ids": 5},
        "listed": {"extra_ids": 5, "additional_special_tokens": sentinels},
        "none": {"extra_ids": 0},
        "cleans up": {"extra_ids": 5, "clean_up_tokenization_spaces": True},
        "legacy": {"legacy": True},
        "not legacy": {"legacy": False},
        "no prefix space": {"add_prefix_space": False},
        "added": {"extra_ids": 0, "added_tokens_decoder": {"99": NEW}},
    }
    table("t5 spiece", {"spiece.model": spm(**T5)}, "T5Tokenizer", t5, "t5")
    alone("t5 spiece alone", {"spiece.model": spm(**T5)}, {}, "mt5")
    identity = {"normalization_rule_name": "identity"}
    alone("t5 spiece identity", {"spiece.model": spm(**T5, **identity)}, config("T5Tokenizer"))
    table("xlm-r", {"sentencepiece.bpe.model": spm()}, "XLMRobertaTokenizer", space)
    alone("xlm-r alone", {"sentencepiece.bpe.model": spm()}, {}, "xlm-roberta")
    albert = {
        "cased": {"do_lower_case": False},
        "keeps accents": {"keep_accents": True},
        "remove_space": {"remove_space": False},
        "no prefix space": {"add_prefix_space": False},
    }
    table("albert", {"spiece.model": spm(**ALBERT)}, "AlbertTokenizer", albert)
    alone("albert alone", {"spiece.model": spm(**ALBERT)}, {}, "albert")
    pegasus = {
        "offset": {"offset": 7},
        "mask": {"mask_token": "<mask_2>", "mask_token_sent": "<mask_1>"},
    }
    table("pegasus", {"spiece.model": spm(**T5)}, "PegasusTokenizer", pegasus)
    languages = {"german": {"src_lang": "de_DE"}}
    table("mbart", {"sentencepiece.bpe.model": spm()}, "MBartTokenizer", languages)
    table("mbart50", {"sentencepiece.bpe.model": spm()}, "MBart50Tokenizer", languages)
    llama = space | {
        "legacy": {"legacy": True},
        "not legacy": {"legacy": False},
        "added": {"added_tokens_decoder": {"400": NEW}},
        "legacy, added": {"legacy": True, "added_tokens_decoder": {"400": NEW}},
        "special": {"added_tokens_decoder": {"400": NEW | {"special": True}}, "legacy": True},
    }
    table("llama", {"tokenizer.model": llama_spm()}, "LlamaTokenizer", llama, "llama")
    table("codellama", {"tokenizer.model": llama_spm()}, "CodeLlamaTokenizer", space, "llama")
    table("mistral", {"tokenizer.model": llama_spm()}, "LlamaTokenizer", llama, "mistral")
    alone("llama alone", {"tokenizer.model": llama_spm()}, {}, "llama")
    gemma = space | {"cleans up": {"clean_up_tokenization_spaces": True}}
    table("gemma", {"tokenizer.model": gemma_spm()}, "GemmaTokenizer", gemma, "gemma")
    alone("gemma alone", {"tokenizer.model": gemma_spm()}, {}, "gemma2")
    alone("gemma nameless", {"tokenizer.model": gemma_spm()}, {}, "llama")
    alone("marian", marian(), config("MarianTokenizer"), "marian")
    alone("byt5", {}, config("ByT5Tokenizer"), "t5")
    alone("byt5 of few sentinels", {}, config("ByT5Tokenizer", extra_ids=3), "t5")
    return found


CASES = cases() if installed else {}


def folder_of(name, root):
    """Writes the files of a case; "saved": those that transformers saves of it, same switches."""
    files, options, model_type, saved = CASES[name]
    root.mkdir(exist_ok=True)
    if model_type is not None:
        (root / "config.json").write_text(json.dumps({"model_type": model_type}))
    if options or saved:
        (root / "tokenizer_config.json").write_text(json.dumps(options))
    for file, content in files.items():
        (root / file).write_bytes(content)
    if saved:
        transformed(root).save_pretrained(root)
        for file in files:
            if file != "tokenizer.json":
                (root / file).unlink()
        written = json.loads((root / "tokenizer_config.json").read_text())
        # As other programs and earlier versions write it.
        (root / "tokenizer_config.json").write_text(json.dumps({**written, **options}))
    return root


def transformed(root):
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(root)


def compare(theirs, ours):
    """Asserts that all texts have the same ids, framed and alone, and decode to the same."""
    for text in TEXTS:
        alone = theirs(text, add_special_tokens=False)["input_ids"]
        ids = ours.encode(text)
        assert ids == alone, text
        assert ours.frame(ids) == theirs(text)["input_ids"], text
        kept = [token for token in alone if token not in (ours.eos_id, ours.pad_id)]
        start = len(ours.frame.before)
        if start and tuple(kept[:start]) == ours.frame.before:
            continue
        assert ours.decode(kept) == theirs.decode(kept), text


@pytest.mark.parametrize("name", CASES)
def test_ids_and_texts_are_those_of_transformers(name, tmp_path):
    root = folder_of(name, tmp_path / "folder")
    compare(transformed(root), read_vocabulary(root))


def test_what_transformers_does_and_is_not_known_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(whole(gpt2())["tokenizer.json"])
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(config("DebertaTokenizer")))
    with pytest.raises(InputError, match="a DebertaTokenizer, which makes something else of token"):
        read_vocabulary(tmp_path)
    path.write_text(json.dumps(config("GPT2Tokenizer", split_special_tokens=True)))
    with pytest.raises(InputError, match=r"split_special_tokens = true in .* is not supported"):
        read_vocabulary(tmp_path)
    path.write_text(json.dumps(config("T5Tokenizer")))
    with pytest.raises(InputError, match="its vocabulary has no scores, which the class needs"):
        read_vocabulary(tmp_path)
    path.write_text(json.dumps(config("SomeonesTokenizer")))
    compare(transformed(tmp_path), read_vocabulary(tmp_path))
