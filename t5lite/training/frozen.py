"""Frozen parameters on disk: written once for all checkpoints of a run, or referred to.

    model_dir/frozen/<fingerprint>/state/       `frozen/…` of the train state, by name
    model_dir/frozen/<fingerprint>/progress/    JSON, as beside a step

A step's own JSON holds `frozen`: the fingerprint, and the `folder` (of any run) that is read again
where the run refers to the checkpoint it started from.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from t5lite.errors import InputError
from t5lite.training.checksums import Checksum, checksums
from t5lite.training.restore import frozen_folder, named, read_description, write_document


def frozen_sums(frozen: Any) -> dict[str, Checksum]:
    """Returns name → checksum of `TrainState.frozen`, on every process."""
    return checksums(named({"frozen": frozen}))


def fingerprint(sums: Mapping[str, Checksum]) -> str:
    return f"{zlib.crc32(json.dumps(sums, sort_keys=True).encode()):08x}"


def save_frozen(
    checkpoints: epath.Path, frozen: Any, sums: Mapping[str, Checksum]
) -> dict[str, str]:
    """Writes frozen arrays beside the folder of steps, unless present; returns a step's entry."""
    entry = {"fingerprint": fingerprint(sums)}
    folder = frozen_folder(checkpoints / "0", entry)
    try:
        read_description(folder)
    except Exception:  # Orbax raises anything for what is absent or half-written
        document = write_document({"checksums": sums})
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(), progress=ocp.JsonCheckpointHandler()
        )
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(
                folder,
                ocp.args.Composite(
                    state=ocp.args.PyTreeSave({"frozen": frozen}),
                    progress=ocp.args.JsonSave(document),
                ),
                force=True,
            )
    return entry


def read_referred(
    step_folder: epath.Path, entry: Mapping[str, str], read: Callable[[str], Any] | None
) -> Any:
    """Returns `TrainState.frozen`, as `read` again from the folder that a run started from.

    `step_folder` and `entry`, the `frozen` of its document, are the step's; if the parameters have
    changed since, an InputError says so.
    """
    if read is None:
        raise InputError(
            f"{step_folder}: its frozen parameters are in {entry['folder']!r}; restore with a "
            "function `frozen` that reads them"
        )
    frozen = read(entry["folder"])
    if fingerprint(frozen_sums(frozen)) != entry["fingerprint"]:
        raise InputError(
            f"{step_folder}: its frozen parameters in {entry['folder']!r} have changed since the "
            "run started\nrestore that folder; Checkpoints.frozen = 'save' keeps a copy in the run",
            field="Checkpoints.frozen",
        )
    return frozen
