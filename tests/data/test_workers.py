"""Worker processes: the batches of none, bit for bit, and none of them outlives its use."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_data import Copy, make, same, take

from t5lite.data import Bytes, FileData, MixtureData, ShardedData, TaskData, write_shards
from t5lite.data.batches import merge_states
from t5lite.errors import InputError, RunError
from t5lite.objectives import Seq2Seq

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def importable():
    """Workers unpickle objectives of the tests' modules."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), before])
    yield
    os.environ["PYTHONPATH"] = before


def files(folder, workers):
    if not (folder / "a.csv").exists():
        (folder / "a.csv").write_text("a,b\n" + "".join(f"text {i},{i % 7}\n" for i in range(90)))
    return FileData(
        str(folder / "a.csv"),
        features={"inputs": "{a}", "targets": "{b}"},
        vocab=Bytes(),
        lengths={"inputs": 16, "targets": 8},
        batch_size=8,
        workers=workers,
    )


def shards(folder, workers):
    examples = [{"inputs": np.full(1 + i % 9, i + 1), "targets": [1, 2]} for i in range(90)]
    if not (folder / "c").exists():
        write_shards({"train": examples}, folder / "c", num_shards=3)
    options = {"lengths": {"inputs": 16, "targets": 8}, "batch_size": 8}
    return ShardedData(str(folder / "c"), workers=workers, **options)


def mixture(folder, workers):
    del folder
    parts = [make(), make()]
    return MixtureData(parts, lengths=parts[0].lengths, batch_size=16, workers=workers)


def arrays(folder, workers):
    del folder
    return make(workers=workers)


@pytest.mark.parametrize("kind", [arrays, files, shards, mixture])
def test_three_workers_make_the_batches_of_none_and_resume(tmp_path, kind):
    alone, shared = (kind(tmp_path, count).train_batches(Copy(), seed=5) for count in (0, 3))
    same(take([shared], 9), take([alone], 9))
    state = json.loads(json.dumps(shared.state_dict()))
    assert state == alone.state_dict()
    assert (shared.epoch, shared.vanished) == (alone.epoch, alone.vanished)
    assert shared.padding_share == alone.padding_share
    expected = take([alone], 5)
    again = kind(tmp_path, 2).train_batches(Copy(), seed=5)  # another number
    again.load_state_dict(state)
    same(take([again], 5), expected)
    shared.load_state_dict(state)  # back, while workers are ahead
    same(take([shared], 5), expected)
    for batches in (alone, shared, again):
        batches.close()


# A SeqIO task with seeded randomness, as T5's span corruption has.
SEQIO_TASK = """
import seqio
import tensorflow as tf

@seqio.map_over_dataset(num_seeds=1)
def shuffled(example, seed):
    return example | {"targets": seqio.stateless_shuffle(example["targets"], seed)}

def source(split, shuffle_files, seed=None):
    texts = [f"text {i} " * (1 + i % 5) for i in range(120)]
    return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts})

feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
seqio.TaskRegistry.add(
    "shuffled_by_seed",
    source=seqio.FunctionDataSource(source, splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize, shuffled, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
)
"""


@pytest.mark.slow
def test_seqio_tasks_are_prepared_by_workers(tmp_path, monkeypatch):
    (tmp_path / "shuffled_task.py").write_text(SEQIO_TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")

    def batches(workers):
        data = TaskData(
            "shuffled_by_seed",
            module="shuffled_task",
            lengths={"inputs": 48, "targets": 48},
            batch_size=8,
            num_shards=4,
            window=16,
            workers=workers,
        )
        return data.train_batches(Seq2Seq(), seed=3)

    alone, shared = batches(0), batches(2)
    same(take([shared], 12), take([alone], 12))
    state = json.loads(json.dumps(shared.state_dict()))
    assert state == alone.state_dict()
    again = batches(2)
    again.load_state_dict(state)
    same(take([again], 4), take([alone], 4))
    for each in (alone, shared, again):
        each.close()


def test_workers_prepare_the_shards_of_one_process_of_several():
    data, shared = make(), make(workers=2)
    halves = [
        each.train_batches(Copy(), seed=5, shards=part)
        for each, part in ((data, range(4)), (shared, range(4, 8)))
    ]
    whole = data.train_batches(Copy(), seed=5)
    same(take(halves, 7), take([whole], 7))
    assert merge_states(each.state_dict() for each in halves) == whole.state_dict()
    for batches in (*halves, whole):
        batches.close()


def test_errors_arrive_as_they_were_raised():
    batches = make(workers=2).train_batches(Copy(fail_at=40), seed=0)
    for _ in range(2):  # again and again
        with pytest.raises(OSError, match="the disk is on fire"):
            take([batches], 60)
    batches.close()
    refused = make(workers=2).train_batches(
        Copy(fail_at=40, error=InputError("a", field="b")), seed=0
    )
    with pytest.raises(InputError) as error:
        take([refused], 60)
    assert (str(error.value), error.value.field) == ("a", "b")
    refused.close()


def test_what_cannot_be_sent_to_a_process_is_refused_before_any_batch():
    objective = Copy()
    objective.hook = lambda: None
    with pytest.raises(InputError, match="workers = 2: the data or the objective cannot be sent"):
        make(workers=2).train_batches(objective, seed=0)
    with pytest.raises(InputError, match="workers is -1"):
        make(workers=-1)


def test_datasets_are_sent_without_what_they_opened(tmp_path):
    data = files(tmp_path, 0)
    data.describe()
    again = pickle.loads(pickle.dumps(data))
    assert "_index" in vars(data)
    assert "_index" not in vars(again)
    assert again.describe() == data.describe()


def children(pid):
    """The data workers of a process, by process id."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def gone(pids):
    for _ in range(600):
        if not [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            return True
        time.sleep(0.1)
    return False


def test_closing_ends_the_workers():
    batches = make(workers=2).train_batches(Copy(), seed=0)
    next(batches)
    running = children(os.getpid())
    assert len(running) == 2
    batches.close()
    assert gone(running)


def test_a_worker_that_is_killed_ends_the_run():
    batches = make(workers=2).train_batches(Copy(), seed=0)
    next(batches)
    os.kill(children(os.getpid())[0], signal.SIGKILL)
    with pytest.raises(RunError, match="ended with exit code -9: if the machine ran out of memory"):
        take([batches], 60)
    batches.close()


# A shell's background jobs ignore Ctrl-C, and so does what they start.
SCRIPT = """
import signal
import time
from small_data import Copy, make

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    batches = make(workers=2).train_batches(Copy(), seed=0)
    next(batches)
    try:
        print("ready", flush=True)
        time.sleep(300)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_a_script_that_trains_when_imported_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from small_data import Copy, make\nnext(make(workers=1).train_batches(Copy(), seed=0))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "ended with exit code 1: its error is above; " in ended.stderr
    assert '`if __name__ == "__main__":`' in ended.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_is_quiet_and_leaves_no_orphan(tmp_path, ending):
    (tmp_path / "run.py").write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout.readline() == "ready\n"
    running = children(run.pid)
    assert len(running) == 2
    if ending == signal.SIGINT:
        os.killpg(run.pid, ending)  # as a terminal does
    else:
        run.kill()
    printed, errors = run.communicate(timeout=120)
    assert gone(running)
    if ending == signal.SIGINT:
        assert (printed, errors, run.returncode) == ("interrupted\n", "", 0)


def test_workers_import_neither_jax_nor_tensorflow(tmp_path):
    (tmp_path / "looks.py").write_text(
        "import sys\nfrom small_data import Copy\n"
        "class Looks(Copy):\n"
        "  def prepare(self, *args, **options):\n"
        "    heavy = {'jax', 'tensorflow', 'seqio'} & set(sys.modules)\n"
        "    if heavy: raise RuntimeError(f'imported {heavy}')\n"
        "    return super().prepare(*args, **options)\n"
    )
    (tmp_path / "run.py").write_text(
        "from looks import Looks\nfrom small_data import make\n"
        "if __name__ == '__main__':\n"
        "  batches = make(workers=2).train_batches(Looks(), seed=0)\n"
        "  next(batches)\n"
        "  batches.close()\n"
    )
    subprocess.run([sys.executable, str(tmp_path / "run.py")], check=True, timeout=60)
