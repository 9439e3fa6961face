"""Hugging Face folders of remote storage load as local ones do, by reading ranges of their files.

A bucket is made up: paths of `gs://` lead into a local folder, and reads are counted.
"""

import jax
import pytest
from etils.epath import backend, gpath
from small_folders import REFERENCES, add_pooling, add_tokenizer, copied, leaves

import t5lite
from t5lite import interop
from t5lite.data.paths import check_folder
from t5lite.errors import InputError
from t5lite.main import main
from t5lite.models import named_spec

ONE = jax.devices()[:1]


class Bucket(backend._OsPathBackend):
    """Local files under the names that they would have in a bucket."""

    def __init__(self, root):
        self.root, self.reads, self.fails = root, [], None

    def _local(self, path):
        text = str(path)
        assert text.startswith("gs://"), text
        return f"{self.root}/{text.removeprefix('gs://')}"

    def open(self, path, mode):
        assert mode == "rb", "nothing is written there"
        if self.fails is not None and str(path).endswith(self.fails):
            raise RuntimeError("a token has expired\nand more")  # of no kind of Python's
        file, reads = super().open(self._local(path), mode), self.reads
        if str(path).endswith(".safetensors"):
            read = file.read

            class Counting:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                seek = file.seek

                def read(self, size=-1):
                    content = read(size)
                    reads.append(len(content))
                    return content

            return Counting()
        return file

    def exists(self, path):
        if self.fails == "":
            raise RuntimeError("a token has expired\nand more")
        return super().exists(self._local(path))

    def isdir(self, path):
        return super().isdir(self._local(path))

    def listdir(self, path):
        return super().listdir(self._local(path))

    def stat(self, path):
        return super().stat(self._local(path))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    storage = Bucket(tmp_path / "storage")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", storage)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    return storage


@pytest.mark.parametrize("case", ["llama", "bert_base_model", "gpt2", "t5_1_1"])
def test_a_remote_folder_loads_as_a_local_one(bucket, tmp_path, case):
    folder = copied(case, bucket.root / "b/model")
    add_tokenizer(folder)
    if case == "bert_base_model":
        add_pooling(folder, {"pooling_mode": "cls"})
    far, near = t5lite.load("gs://b/model", devices=ONE), t5lite.load(folder, devices=ONE)
    assert far.spec == near.spec
    assert leaves(far.params) == leaves(near.params)
    assert far.vocabulary.encode("a cat") == near.vocabulary.encode("a cat")
    # Ranges, not whole files again and again.
    size = (folder / "model.safetensors").stat().st_size
    assert max(bucket.reads) < size
    assert sum(bucket.reads) <= 2.5 * size


def test_a_remote_folder_is_converted(bucket, tmp_path):
    copied("llama", bucket.root / "b/model")
    assert interop.kind_of("gs://b/model") == ("huggingface", "gs://b/model")
    assert main(["convert", "gs://b/model", str(tmp_path / "t5lite")]) == 0
    near = t5lite.load(REFERENCES / "llama", devices=ONE)
    assert leaves(t5lite.load(tmp_path / "t5lite", devices=ONE).params) == leaves(near.params)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://b/model", r"'http://b/model': folders of http:// cannot be read .*; copy it"),
        ("file:///m", r"'file:///m': folders of file:// cannot be read or written; copy it to a"),
        ("s3://b/model", r"s3://b/model.* cannot be reached: no driver\n.* copy the folder"),
        ("https://huggingface.co/a/b/tree/main", r"is a web page; give the name of its .*'a/b'"),
    ],
)
def test_urls_of_other_storage(url, expected, monkeypatch):
    def fails(self, path):
        raise NotImplementedError("no driver")

    monkeypatch.setattr(backend._OsPathBackend, "exists", fails)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "s3", backend.os_backend)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    for open_ in (interop.open_model, named_spec):
        with pytest.raises(InputError, match=expected) as error:
            open_(url)
        assert "google" not in str(error.value)  # another storage's login
    assert error.value.field == "model"
    if "face" not in url and "s3" not in url:
        with pytest.raises(InputError, match=rf"^train.model_dir = .*{expected}") as error:
            check_folder(url, field="train.model_dir")
        assert error.value.field == "train.model_dir"


def test_errors_of_a_bucket_name_the_file_and_the_cause(bucket):
    folder = copied("llama", bucket.root / "b/model")
    with pytest.raises(InputError, match=r"no folder 'gs://b/none'; list its bucket"):
        t5lite.load("gs://b/none")
    for fails, expected in (
        (
            "",
            r"gs://b/model cannot be reached: a token has expired\ncheck the network and the login",
        ),
        ("model.safetensors", r"cannot read gs://b/model/model.safetensors: a token has expired"),
    ):
        bucket.fails = fails
        with pytest.raises(InputError, match=expected):
            t5lite.load("gs://b/model", devices=ONE)
    bucket.fails = None
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"gs://b/model/model.safetensors is truncated"):
        t5lite.load("gs://b/model", devices=ONE)
