"""SentencePiece's pieces under other ids: saved, as SeqIO's, and two models of one vocabulary."""

import io

import jax
import numpy as np
import pytest

from t5lite.data.files.file_data import FileData
from t5lite.data.tasks.twins import from_seqio
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.opening import load_vocabulary
from t5lite.data.vocabularies.sentence_pieces import MappedSentencePiece
from t5lite.errors import InputError
from t5lite.inference import Engine, Loaded
from t5lite.inference.scoring import Scorer
from t5lite.interop import Description
from t5lite.models import Model, override
from t5lite.objectives import Seq2Seq
from t5lite.parallel import Layout, make_mesh

sentencepiece = pytest.importorskip("sentencepiece")

SOURCES = ["the cat sat on the mat", "a dog saw the cat", "the mat is flat"]
TARGETS = ["die Katze saß auf der Matte", "ein Hund sah die Katze", "die Matte ist flach"]
TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def train(texts, path, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(token) for token in range(len(processor))]


@pytest.fixture
def marian(tmp_path):
    """As Marian has it: EOS is id 0, padding the last, a model for each language."""
    pieces = ["</s>", "<unk>", ">>deu<<"]
    for texts, name in ((SOURCES, "source.spm"), (TARGETS, "target.spm")):
        result = train(texts, tmp_path / name, bos_id=-1, eos_id=0, unk_id=1)
        pieces += [piece for piece in result if piece not in pieces]
    ids = {piece: number for number, piece in enumerate([*pieces, "<pad>"])}
    return MappedSentencePiece(
        tmp_path / "source.spm",
        ids,
        tokens=TOKENS,
        after=["</s>"],
        target_file=tmp_path / "target.spm",
    )


def test_sources_and_targets_have_pieces_of_their_own(marian):
    assert isinstance(marian, Vocabulary)
    assert (marian.pad_id, marian.eos_id) == (marian.size - 1, 0)
    for token in range(marian.size):
        assert marian.id_of(marian.piece(token)) == token
    assert marian.id_of("no such piece") is None
    for text in TARGETS:
        ids = marian.targets.encode(text)
        assert marian.decode([*ids, marian.pad_id, 0, 5]) == text
        assert len(ids) < len(marian.encode(text))
    assert marian.frame(marian.encode(">>deu<<the cat")) == [2, *marian.encode("the cat"), 0]
    assert marian.decode(marian.encode(SOURCES[0])) == SOURCES[0]


def test_offsets_are_those_of_the_whole_text(marian):
    for text in (SOURCES[0], f">>deu<<{SOURCES[0]}"):
        ids, offsets = marian.encode_with_offsets(text)
        assert ids == marian.encode(text)
        assert "".join(text[begin:end] for begin, end in offsets) == text
        assert [end for _, end in offsets[:-1]] == [begin for begin, _ in offsets[1:]]


def test_it_is_saved_and_is_seqios(marian, tmp_path):
    marian.save(tmp_path / "saved")
    loaded = load_vocabulary(tmp_path / "saved")
    assert loaded.fingerprint == marian.fingerprint == marian.targets.fingerprint
    assert loaded.targets.encode(TARGETS[0]) == marian.targets.encode(TARGETS[0])
    twin = marian.as_seqio()
    assert from_seqio(twin) is marian
    assert twin == marian.targets.as_seqio()
    assert (twin.pad_id, twin.eos_id) == (marian.pad_id, 0)
    assert twin.encode(SOURCES[0]) == marian.encode(SOURCES[0])
    assert twin.decode(marian.encode(SOURCES[1])) == SOURCES[1]
    (tmp_path / "saved" / "ids.json").write_text("[]")
    with pytest.raises(InputError, match=r"ids\.json is damaged"):
        load_vocabulary(tmp_path / "saved")


def test_files_have_their_targets_in_the_targets_pieces(marian, tmp_path):
    lines = "".join(f"{one}\t{second}\n" for one, second in zip(SOURCES, TARGETS, strict=True))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + lines)
    data = FileData(
        str(tmp_path / "pairs.tsv"),
        features={"inputs": "{source}", "targets": "{target}"},
        vocab=marian,
        validation_share=0.0,
        lengths={"inputs": 60, "targets": 60},
        batch_size=1,
    )
    result = data.examples(Seq2Seq(), split="train", count=3, seed=0)
    assert sorted(item["targets"].tolist() for item in result) == sorted(
        [*marian.targets.encode(text), 0] for text in TARGETS
    )
    assert sorted(item["inputs"].tolist() for item in result) == sorted(
        [*marian.encode(text), 0] for text in SOURCES
    )
    # And where a trained model scores them.
    model = Model(override("t5_1_1_nano", {"vocab": 512}))
    layout = Layout()
    engine = Engine(model, marian, layout, make_mesh(layout, jax.devices()[:1]))
    loaded = Loaded(engine, None, Description(model.spec))
    questions = [Scorer(loaded).read(*pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    for name in ("inputs", "targets"):
        scored = sorted(getattr(question, name) for question in questions)
        assert scored == sorted(item[name].tolist() for item in result)
    batch = next(iter(data.train_batches(Seq2Seq(), seed=0)))
    tokens = batch["decoder_target_tokens"][batch["decoder_loss_weights"] > 0]
    # EOS, which also fills the row up.
    assert np.count_nonzero(tokens == 0) == batch["decoder_segment_ids"].max() > 0


def test_tokens_without_an_id_are_named(tmp_path):
    pieces = train(SOURCES, tmp_path / "a.model")
    ids = {piece: number for number, piece in enumerate(pieces)}
    with pytest.raises(InputError, match="lack <pad>"):
        MappedSentencePiece(tmp_path / "a.model", ids, tokens=TOKENS)
    tokens = {name: TOKENS[name] for name in ("eos", "unk")}
    result = MappedSentencePiece(tmp_path / "a.model", ids, tokens=tokens)
    assert (result.pad_id, result.frame([7])) == (-1, [7])
