"""Frozen parameters on disk: written once for all checkpoints of a run, or referred to.

    model_dir/frozen/<fingerprint>/state/       `frozen/…` of the train state, by name
    model_dir/frozen/<fingerprint>/progress/    JSON, as beside a step

A step's own JSON holds `frozen`: the fingerprint, and the `folder` (of a run or anyone's) that is
read again where the run refers to the checkpoint it started from.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from t5lite.training.checksums import Checksum, checksums
from t5lite.training.restore import frozen_folder, named, read_description, write_document


def frozen_sums(frozen: Any) -> dict[str, Checksum]:
    """Returns name → checksum of `TrainState.frozen`, on every process."""
    return checksums(named({"frozen": frozen}))


def fingerprint(sums: Mapping[str, Checksum]) -> str:
    """Returns eight hexadecimal digits of arrays' checksums."""
    return f"{zlib.crc32(json.dumps(sums, sort_keys=True).encode()):08x}"


def save_frozen(
    checkpoints: epath.Path, frozen: Any, sums: Mapping[str, Checksum]
) -> dict[str, str]:
    """Writes frozen arrays beside the checkpoints folder, unless they are there already.

    Args:
      checkpoints: the folder of steps.
      frozen: `TrainState.frozen`.
      sums: its checksums.

    Returns:
      What a step's document says of them.
    """
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
