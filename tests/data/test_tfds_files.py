"""TensorFlow Datasets as files of one's own: a small one is prepared here, and read by its name."""

import json
import os
import socket
import time

import numpy as np
import pytest

from t5lite.data import Bytes, Class, FileData
from t5lite.data.files.tfds_files import tfds_file
from t5lite.data.importing import import_seqio
from t5lite.errors import InputError
from t5lite.objectives import Classification

SIZES = {"train": 40, "test": 6}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Prepares `tiny_reviews`, and makes it known."""
    import_seqio()
    import tensorflow_datasets as tfds

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        """Texts with a class, words and an answer."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "stars": tfds.features.ClassLabel(names=["bad", "good"]),
                "words": tfds.features.Sequence(tfds.features.Text()),
                "answers": tfds.features.Sequence({"text": tfds.features.Text(), "at": np.int32}),
                "picture": tfds.features.Image(shape=(2, 2, 3)),
                "ragged": tfds.features.Sequence(tfds.features.Sequence(np.int32)),
                "score": np.float32,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name) for name in SIZES}

        def _generate_examples(self, split):
            for number in range(SIZES[split]):
                yield (
                    number,
                    {
                        "text": f"a naïve {split} text, number {number}",
                        "stars": number % 2,
                        "words": ["a", "b"],
                        "answers": [{"text": "naïve", "at": 2}],
                        "picture": np.zeros((2, 2, 3), np.uint8),
                        "ragged": [[1], [2, 3]],
                        "score": number / 4,
                    },
                )

    class NeverPrepared(TinyReviews):
        """Known, and not there."""

    folder = tmp_path_factory.mktemp("tfds")
    TinyReviews(data_dir=folder).download_and_prepare()
    tfds.core.add_data_dir(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))


def test_examples_are_lines_with_the_names_of_classes(reviews):
    path = tfds_file("tfds:tiny_reviews#test")
    assert os.path.basename(path).startswith("tiny_reviews_1_0_0_test-")
    with open(path, encoding="utf-8") as file:
        lines = sorted((json.loads(line) for line in file), key=lambda line: line["score"])
    assert len(lines) == SIZES["test"]
    assert lines[1] == {
        "text": "a naïve test text, number 1",
        "stars": "good",
        "words": ["a", "b"],
        "answers/text": ["naïve"],
        "answers/at": [2],
        "score": 0.25,
    }
    mtime = os.stat(path).st_mtime_ns
    time.sleep(0.01)
    assert tfds_file("tfds:tiny_reviews:1.0.0#test") == path
    assert os.stat(path).st_mtime_ns == mtime


def test_it_is_data_like_any_other(reviews):
    data = FileData(
        "tfds:tiny_reviews",
        features={"inputs": "{text}", "labels": Class("stars")},
        vocab=Bytes(),
        validation_files="tfds:tiny_reviews#test",
        lengths={"inputs": 48},
        batch_size=4,
    )
    assert {split: data.num_examples(split) for split in ("train", "validation")} == {
        "train": 40,
        "validation": 6,
    }
    assert data.class_counts("train") == {"labels": {"bad": 20, "good": 20}}
    (example,) = data.examples(Classification(topology="encoder"), split="train", count=1, seed=0)
    assert Bytes().decode(example["inputs"]).startswith("a naïve train text, number ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:tiny_reviewz", "TensorFlow Datasets has no 'tiny_reviewz'"),
        ("tfds:tiny_reviews#tset", "unknown split 'tset'; did you mean test"),
        ("tfds:never_prepared", "'tfds:never_prepared' is not prepared in .*: run `tfds build nev"),
        ("tfds:kaggle:reviews", "must be tfds:NAME, .* copy community datasets"),
        ("tfds:", "'tfds:': must be tfds:NAME"),
    ],
)
def test_mistakes_are_named_without_asking_a_network(reviews, monkeypatch, name, message):
    def refuse(*address, **_):
        raise AssertionError(f"asks for {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(InputError, match=message) as error:
        tfds_file(name)
    assert len(str(error.value).splitlines()) <= 3
