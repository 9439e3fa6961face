"""The folder of a run: ownership of its files, and the description of the run."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels, check_labels
from t5lite.data.paths import write_changed
from t5lite.errors import InputError
from t5lite.interop import Description
from t5lite.interop.description import FILES, MODEL
from t5lite.models import ModelSpec, differences
from t5lite.objectives import Prompts
from t5lite.parallel import gather
from t5lite.reporting.report import describe_run, is_report, read_facts
from t5lite.training.claims import Claim, claimed
from t5lite.training.restore import saved_steps
from t5lite.training.tuning import Everything, Tuning

_FILES = ("run.json", "config.gin", *FILES)
# Files of runs older than the list in `run.json`.
_EARLIER_FILES = {*_FILES, "metrics.jsonl", "texts.jsonl", "report.html", "mlflow_run_id"}


@contextlib.contextmanager
def one_writer(folder: epath.Path, *, say: Callable[[str], object]) -> Iterator[Claim | None]:
    """Claims a folder for all processes of this run; process 0 gets the claim.

    Raises: InputError on every process if another run writes there, or the folder is not writable.
    """
    with contextlib.ExitStack() as stack:
        claim, refusal = None, None
        if jax.process_index() == 0:
            try:
                claims = folder / ".claims"
                name = f"model_dir = {str(folder)!r}"
                claim = stack.enter_context(claimed(claims, name=name, say=say))
            except InputError as error:
                refusal = str(error)
        if refusal := gather(refusal)[0]:
            raise InputError(refusal, field="model_dir")
        yield claim


def writer_files(writers: Sequence[Any]) -> list[str]:
    """Returns the names of the files that writers of metrics, or their makers, write."""
    return [name for writer in writers for name in getattr(writer, "files", ())]


def check_files(folder: epath.Path, of_writers: Collection[str]) -> None:
    """Refuses a folder with foreign files that the run, or its metrics writers, would overwrite."""
    own = _own_files(folder)
    foreign = [
        name
        for name in (*_FILES, *of_writers)
        if name not in own
        and (folder / name).exists()
        and not (name == "report.html" and is_report(folder / name))
    ]
    if foreign:
        raise InputError(
            f"model_dir = {str(folder)!r} holds {', '.join(foreign)}, which no run of t5lite wrote "
            "and this one would overwrite\nchoose another folder, or move the files away",
            field="model_dir",
        )


def _own_files(folder: epath.Path) -> set[str]:
    """Returns the names of the files that the folder's run has written; none without a run."""
    facts = read_facts(folder)
    if facts:
        return {"run.json", *facts.get("files", _EARLIER_FILES)}
    return _EARLIER_FILES if saved_steps(folder) else set()


def check_described(
    folder: epath.Path,
    spec: ModelSpec,
    vocabulary: Any,
    labels: Labels,
    *,
    tuning: Tuning | None = None,
) -> Description | None:
    """Returns a folder's description; None if it has none.

    Raises: InputError for a different model, vocabulary, labels or tuning (None: any).
    """
    if not (folder / MODEL).exists():
        return None
    description = Description.read(folder)
    changed = differences(description.spec, spec)
    if changed:
        more = [f"and {len(changed) - 2} more"] if changed[2:] else []
        raise InputError(
            f"{folder} holds a run of another model; choose another model_dir or undo:\n  "
            + "\n  ".join([*map(str, changed[:2]), *more])
        )
    old = description.vocabulary
    if vocabulary is not None and old is not None and old.fingerprint != vocabulary.fingerprint:
        raise InputError(
            f"{folder} holds a run with another vocabulary "
            f"({old.size} ids, now {vocabulary.size}); choose another model_dir"
        )
    if tuning is not None and description.tuning != tuning:
        raise InputError(
            f"train.tuning = {tuning}: {folder} holds a run with {description.tuning}; resume it "
            "with that, or choose another model_dir and start from this one "
            "(INITIAL_CHECKPOINT_PATH)",
            field="train.tuning",
        )
    check_labels(labels, description.labels, where=f"the run in {folder}")
    return description


def description_of(
    spec: ModelSpec,
    data: Any,
    *,
    prompts: Prompts | None = None,
    inputs: InputFormat = InputFormat(),
    start: Description | None = None,
    tuning: Tuning = Everything(),
) -> Description:
    """Returns the description of a run's checkpoints.

    Args:
      prompts: how the trained model is prompted; None if it is not, or unknown.
      inputs: how rows become the texts that it reads.
      start: of the checkpoint that a new run starts from; None for none.
    """
    vocabulary = data.vocabulary()
    description = Description(spec, vocabulary, data.labels(), prompts, inputs, tuning=tuning)
    if start is None:
        return description
    theirs = start.vocabulary
    same = vocabulary is not None and theirs and theirs.fingerprint == vocabulary.fingerprint
    # With the origin the run can be converted back with all that its folder said.
    return description.replace(origin=start.origin, generation=start.generation if same else None)


def describe(
    folder: epath.Path,
    description: Description,
    *,
    config: str | None,
    of_writers: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Writes the files that describe a run's checkpoints without its configuration.

    Files with the same content stay untouched: other processes may be reading them.

    Args:
      config: text of `config.gin`; None for none.
      of_writers: names of the files that the writers of metrics write.
      facts: further content of `run.json`, see `describe_run`.
    """
    # First: it says which files are the run's own.
    files = sorted(_own_files(folder).union(_FILES, of_writers))
    describe_run(folder, files=files, started=time.time(), **facts)
    description.write(folder)
    if config is not None:
        write_changed(folder / "config.gin", config.encode())


def last_saved(model_dir: epath.PathLike) -> str:
    """Returns a line for the end of a run: the last saved step."""
    steps = saved_steps(model_dir)
    return f"step {max(steps)} is saved in {model_dir}" if steps else "no step is saved yet"
