"""`predict` on Hugging Face folders says what transformers' pipelines and models say."""

import json

import jax
import numpy as np
import pytest
from parity_cases import CASES
from small_folders import add_tokenizer

import t5lite

pytestmark = pytest.mark.slow

FAMILIES = ["bert", "distilbert", "electra", "gpt2", "llama"]
TEXTS = ["the cat sat.", "a dog", "it", '(over the hill), "and" over?', "the quick brown fox ran"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NEAR = {"rel": 2e-4, "abs": 1e-5}


@pytest.fixture
def transformers():
    pytest.importorskip("torch", reason="needs the extra `parity`")
    return pytest.importorskip("transformers", reason="needs the extra `parity`")


def folder_of(tmp_path, case, *, names=(), seed=0):
    """Returns a folder of a random model, as transformers writes it, with a tokenizer."""
    import parity

    config = CASES[case] | {"max_position_embeddings": 40}
    config.pop("n_positions", None)  # GPT-2's name for the same
    if names:
        config |= {"num_labels": len(names), "id2label": dict(enumerate(names))}
    model = parity.build(config, seed)
    model.save_pretrained(tmp_path / case)
    folder = add_tokenizer(tmp_path / case, words=("the", "over", "dog"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    inputs = ["input_ids", "attention_mask", *["token_type_ids"] * ("type_vocab_size" in config)]
    settings |= {"model_input_names": inputs}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def opened(folder):
    return t5lite.load(folder, devices=jax.devices()[:1])


@pytest.mark.parametrize("names", [("bad", "good", "fair"), ()])
@pytest.mark.parametrize("family", FAMILIES)
def test_classes(transformers, tmp_path, family, names):
    folder = folder_of(tmp_path, f"{family}_head_classes", names=names)
    expected = transformers.pipeline("text-classification", model=str(folder), top_k=None)(TEXTS)
    actual = opened(folder).predict(TEXTS, top_k=99)
    for one, other in zip(actual, expected, strict=True):
        labels = [item["label"] for item in other]
        assert [name if names else f"LABEL_{name}" for name, _ in one.classes] == labels
        shares = [item["score"] for item in other]
        assert [share for _, share in one.classes] == pytest.approx(shares, **NEAR)


def test_classes_of_pairs(transformers, tmp_path):
    folder = folder_of(tmp_path, "bert_classes", names=("no", "yes"))
    classify = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    rows = [
        {"text": first, "text_pair": second}
        for first, second in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)
    ]
    actual = opened(folder).predict(rows)
    alone = opened(folder).predict(TEXTS)
    for one, row, other in zip(actual, rows, alone, strict=True):
        (expected,) = [classify(row)]
        assert one.probability == pytest.approx(expected[0]["score"], **NEAR)
        assert one.label == expected[0]["label"]
        assert one.probability != pytest.approx(other.probability, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers(transformers, tmp_path, family):
    folder = folder_of(tmp_path, f"{family}_head_numbers")
    score = transformers.pipeline(
        "text-classification", model=str(folder), function_to_apply="none"
    )
    actual = opened(folder).predict(TEXTS)
    for one, other in zip(actual, score(TEXTS, top_k=None), strict=True):
        scores = {item["label"]: item["score"] for item in other}
        assert one.values == pytest.approx((scores["LABEL_0"], scores["LABEL_1"]), **NEAR)


@pytest.mark.parametrize("aggregation", ["simple", "first"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tags(transformers, tmp_path, aggregation, family):
    folder = folder_of(tmp_path, f"{family}_head_tokens", names=TAGS)
    tag = transformers.pipeline(
        "token-classification", model=str(folder), aggregation_strategy=aggregation
    )
    actual = opened(folder).predict(TEXTS, aggregation=aggregation)
    for text, one, other in zip(TEXTS, actual, tag(TEXTS), strict=True):
        places = [(span.tag, span.start, span.end) for span in one.spans]
        assert places == [(item["entity_group"], item["start"], item["end"]) for item in other]
        shares = [span.probability for span in one.spans]
        assert shares == pytest.approx([item["score"] for item in other], **NEAR)
        assert all(span.text == text[span.start : span.end] for span in one.spans)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers(transformers, tmp_path, family):
    folder = folder_of(tmp_path, f"{family}_head_spans")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [{"question": "what is it", "context": text} for text in [*TEXTS, "over " * 40]]
    options = {"top_k": 1, "max_answer_length": 4, "max_length": 40}
    actual = opened(folder).predict(rows, **options)
    impossible = opened(folder).predict(rows, **options, no_answer=True)
    for row, one, other in zip(rows, actual, impossible, strict=True):
        batch = tokenizer(
            row["question"],
            row["context"],
            truncation="only_second",
            max_length=40,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = batch.pop("offset_mapping")[0].tolist()
        inside = [at for at, text in enumerate(batch.sequence_ids()) if text == 1]
        output = model(**batch)
        logits = [item[0].detach().numpy() for item in (output.start_logits, output.end_logits)]
        logits = np.stack(logits, axis=1)

        def best(requested, logits=logits, inside=inside):
            starts, ends = (np.exp(item) / np.exp(item[requested]).sum() for item in logits.T)
            pairs = {(i, j): starts[i] * ends[j] for i in inside for j in inside if 0 <= j - i < 4}
            pair = max(pairs, key=pairs.get)
            return pair, pairs[pair], starts[0] * ends[0]

        (first, last), share, _ = best(inside)
        answer = one.answers[0]
        assert (answer.start, answer.end) == (offsets[first][0], offsets[last][1])
        assert answer.probability == pytest.approx(share, **NEAR)
        assert answer.text == row["context"][answer.start : answer.end]
        assert one.num_cut == max(
            len(tokenizer(**{"text": row["question"], "text_pair": row["context"]}).input_ids) - 40,
            0,
        )
        assert one.no_answer is None
        _, share, none = best([0, *inside])
        assert other.no_answer == pytest.approx(none, **NEAR)
        assert other.answers[0].probability == pytest.approx(share, **NEAR)
        assert (other.best is None) == (none > share)


def test_offsets_of_bytes_in_pairs(transformers, tmp_path):
    """Tokens that hold the space before a word, as those of RoBERTa do."""
    import tokenizers

    folder = folder_of(tmp_path, "roberta_classes")
    created = tokenizers.Tokenizer(tokenizers.models.BPE())
    created.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    created.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted({c for text in [*TEXTS, "é what"] for c in "Ġ" + text if c != " "})
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=90, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    created.train_from_iterator(TEXTS, trainer)
    created.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False
    )
    created.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = t5lite.interop.open_model(folder).vocabulary
    pair = vocabulary.encode_pair("the dog", "over the hill")
    theirs = tokenizer("the dog", "over the hill", return_offsets_mapping=True)
    assert pair.ids == theirs.input_ids
    inside = [at for at, text in enumerate(theirs.sequence_ids()) if text == 1]
    assert pair.start == inside[0]
    assert pair.offsets == [theirs["offset_mapping"][at] for at in inside]
    cut = vocabulary.encode_pair("the dog", "over the hill", len(pair.ids) - 2)
    assert (cut.num_cut, len(cut.ids)) == (2, len(pair.ids) - 2)
    assert cut.ids[:-1] == pair.ids[: len(cut.ids) - 1]
    assert cut.ids[-1] == pair.ids[-1]
    with pytest.raises(t5lite.errors.InputError, match="leaves no room for the second"):
        vocabulary.encode_pair("the dog", "over the hill", 4)
