"""Writes cases.json: small tokenizers as Hugging Face folders, and the ids that transformers gives.

    python tests/interop/tokenizer_cases/make.py

needs transformers, sentencepiece and protobuf, none of which the tests need.
"""

import base64
import io
import json
import tempfile
import warnings
from pathlib import Path

import sentencepiece
import tokenizers
import transformers

CORPUS = (
    """The cats sat on the mats; the cat's mat was flat. Stop! Don't stop now, said the dog.
A naïve façade over the café. Numbers such as 1234 and 3.14 count. Die Katze saß auf der Matte.
Short words and long words, hyphen-ated words and CAPITALS, all in lower case and in Upper Case.
"""
    * 20
)
TEXTS = [
    "",
    " ",
    "!",
    "The cats sat on the mat.",
    "  leading and   several spaces  ",
    "Stop! Don't stop!!",
    "a line\nanother line\n\n\tand a tab",
    "naïve café, Straße, 1234",
    "emoji 🙂 and 漢字 and א",
    "word </s> word <mask> word <pad>",
    "CAPITALS in Upper Case",
]
PLAIN = {"normalization_rule_name": "identity", "minloglevel": 2, "hard_vocab_limit": False}


def spm(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        **({"vocab_size": 110} | PLAIN | options),
    )
    return model.getvalue()


def byte_pairs(first=(), last=()):
    """Returns `vocab.json` and `merges.txt`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320 + len(first),
        special_tokens=list(first),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ids = model["vocab"] | {token: len(model["vocab"]) + at for at, token in enumerate(last)}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    return {"vocab.json": json.dumps(ids, ensure_ascii=False), "merges.txt": merges + "\n"}


def word_pieces():
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=150,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator((CORPUS + CORPUS.lower()).splitlines(), trainer)
    vocab = tokenizer.get_vocab()
    return "\n".join(sorted(vocab, key=vocab.get)) + "\n"


def marian():
    source = spm(vocab_size=90, pad_id=-1, bos_id=-1, eos_id=0, unk_id=1)
    target = spm(vocab_size=80, pad_id=-1, bos_id=-1, eos_id=0, unk_id=1, model_type="bpe")
    pieces = ["</s>", "<unk>", ">>deu<<"]
    for model in (source, target):
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        found = [processor.id_to_piece(at) for at in range(len(processor))]
        pieces += [piece for piece in found if piece not in pieces]
    ids = {piece: at for at, piece in enumerate([*pieces, "<pad>"])}
    return {"source.spm": source, "target.spm": target, "vocab.json": json.dumps(ids)}


def config(kind, **options):
    return {"tokenizer_config.json": json.dumps({"tokenizer_class": kind, **options})}


def whole(tokenizer):
    """Returns the files that transformers saves."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text() for path in Path(folder).iterdir()}


def cases():
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    words = word_pieces()
    roberta = byte_pairs(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    gpt2 = byte_pairs((), ["<|endoftext|>"])
    found = {
        "gpt2": gpt2 | config("GPT2Tokenizer"),
        "opt": roberta
        | config(
            "GPT2Tokenizer",
            add_bos_token=True,
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>"),
            pad_token="<pad>",
        ),
        "roberta": roberta | config("RobertaTokenizer"),
        "bart_prefix_space": roberta | config("BartTokenizer", add_prefix_space=True),
        "bert": {"vocab.txt": words} | config("BertTokenizer"),
        "bert_cased": {"vocab.txt": words} | config("BertTokenizer", do_lower_case=False),
        "t5": {"spiece.model": spm(**t5)} | config("T5Tokenizer", extra_ids=5),
        "pegasus": {"spiece.model": spm(**t5)} | config("PegasusTokenizer"),
        "xlm_roberta": {"sentencepiece.bpe.model": spm()} | config("XLMRobertaTokenizer"),
        "llama": {
            "tokenizer.model": spm(
                model_type="bpe",
                vocab_size=400,
                byte_fallback=True,
                remove_extra_whitespaces=False,
            )
        }
        | config("LlamaTokenizer", add_bos_token=True),
        "marian": marian() | config("MarianTokenizer"),
        "byt5": config("ByT5Tokenizer"),
    }
    for name in ("gpt2", "roberta", "bert", "t5"):
        found[f"{name}_json"] = whole(opened(found[name]))
    return found


def opened(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (Path(folder) / "config.json").write_text("{}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer("", text_target="")  # reads all its files
        return tokenizer


def ids_of(tokenizer):
    """Returns for each text its ids alone, as the model reads them, and the text that they give."""
    texts = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        texts.append([text, ids, tokenizer(text)["input_ids"], said])
    names = ("eos", "bos", "pad", "unk", "mask")
    return {"texts": texts} | {name: getattr(tokenizer, f"{name}_token_id") for name in names}


def main():
    warnings.simplefilter("ignore")
    made = {}
    for name, files in cases().items():
        tokenizer = opened(files)
        made[name] = {"files": {}, **ids_of(tokenizer)}
        for file, content in files.items():
            is_text = isinstance(content, str)
            made[name]["files"][file] = (
                content if is_text else {"base64": base64.b64encode(content).decode()}
            )
        if name == "marian":
            made[name]["targets"] = [
                [text, tokenizer(text_target=text)["input_ids"]] for text in TEXTS
            ]
    versions = {each.__name__: each.__version__ for each in (transformers, tokenizers)}
    path = Path(__file__).with_name("cases.json")
    text = json.dumps({"versions": versions, "cases": made}, ensure_ascii=True)
    path.write_text(text.replace('}, "', '},\n"') + "\n")
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
