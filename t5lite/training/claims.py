"""One writer per folder, on any file system: object stores have no file locks.

A writer first writes its claim, `.claims/<start time>-<random>.json` in the folder, and only then
lists the other claims: of two writers at least one sees the other. A killed process leaves its
claim: on the same machine its process id shows that it is dead, on another one its heartbeat, which
is watched for a change rather than compared to the clock, as two machines' clocks may differ.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from t5lite.errors import InputError, RunError
from t5lite.reporting.files import replace_text

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # without a beat: six were missed
_ABANDONED_SECONDS = 3600.0  # a beat this old is stale without watching: no clock is that wrong
_WITHDRAWAL_SECONDS = 2.0  # for the later of two simultaneous claims to be withdrawn
_POLL_SECONDS = 0.1


class ClaimLost(RunError):
    """Another process took over the folder, as this one looked dead: it must not write again."""


@dataclasses.dataclass
class Claim:
    """The claim of this process on `name`, a file of JSON; made by `claimed`."""

    path: epath.Path
    content: dict[str, Any]
    name: str
    field: str | None = None

    def __post_init__(self) -> None:
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="t5lite-claim", daemon=True)

    def begin(self) -> None:
        """Writes the claim, and updates its heartbeat in a thread."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()

    def check(self) -> None:
        """Raises `ClaimLost` if another process has taken over."""
        if _read(self.path) is None:
            rival = next(iter(_claims(self.path).values()), None)
            by = "" if rival is None else f", by {_describe(rival)}"
            raise ClaimLost(
                f"{self.name}: the claim of this process was removed{by}\n"
                "run again to resume, once no other process writes there"
            )

    def release(self) -> None:
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        # Object stores show a file only once it is whole.
        write = epath.Path.write_text if "://" in str(self.path) else replace_text
        write(self.path, json.dumps(self.content))

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk or a lost connection may recover
                if _read(self.path) is None:
                    return  # another process has taken over
                self.content["beat"] = time.time()
                self._write()


@contextlib.contextmanager
def claimed(
    claims: epath.PathLike,
    *,
    name: str,
    field: str | None = None,
    say: Callable[[str], object] = print,
) -> Iterator[Claim]:
    """Claims a folder for this process; at the end removes the empty folders it created.

    Args:
      claims: folder of the claims, local, `gs://` or `s3://`; the same for all writers.
      name: of the claimed folder, for messages.
      field: the parameter that gives the folder, see `InputError`.
      say: called when a claim from another machine has to be watched.
    Raises: InputError another living process holds it, or the claim cannot be written.
    """
    claims, now = epath.Path(claims), time.time()
    content = {**_this_process(), "started": now, "beat": now}
    claim = Claim(claims / f"{now:017.6f}-{uuid.uuid4().hex[:8]}.json", content, name, field)
    local = "://" not in str(claims)
    new_folders = [path for path in (claims, *claims.parents) if local and not path.exists()]
    try:
        try:
            claim.begin()
        except OSError as error:
            raise InputError(
                f"{name} cannot be written: {error.strerror or error}\n"
                "choose another folder or change its permissions",
                field=field,
            ) from error
        _refuse_others(claim, say)
        yield claim
    finally:
        claim.release()
        for path in new_folders:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(path)


def _refuse_others(claim: Claim, say: Callable[[str], object]) -> None:
    """Removes stale claims and raises an InputError for a living one."""
    end = time.monotonic() + _WITHDRAWAL_SECONDS
    for path, content in _claims(claim.path).items():
        while _alive(path, content, say):
            # Of two simultaneous claims, the one whose name sorts first stays.
            if path.name < claim.path.name or time.monotonic() > end:
                raise InputError(
                    f"{claim.name} is being written by {_describe(content)}\n"
                    "wait for it, end it, or choose another folder",
                    field=claim.field,
                )
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _claims(mine: epath.Path) -> dict[epath.Path, dict[str, Any]]:
    """Returns path → content of the other claims on the same thing, in the order of their start."""
    contents = {}
    for path in sorted(mine.parent.glob("*.json")) if mine.parent.exists() else ():
        if path != mine and (content := _read(path)) is not None:
            contents[path] = content
    return contents


def _read(path: epath.Path) -> dict[str, Any] | None:
    """Returns a claim's content: empty if it is damaged, None if it was withdrawn."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(path: epath.Path, content: dict[str, Any], say: Callable[[str], object]) -> bool:
    """Whether the process of a claim still runs; watches for a beat where only that can tell."""
    if content.get("machine") == _machine():
        pid = int(content["pid"])
        same = _runs(pid) and content.get("pid_started") == _start_of(pid)
        return same and _read(path) is not None
    if time.time() - content.get("beat", math.inf) > _ABANDONED_SECONDS:
        return False
    say(f"is {_describe(content)} still alive? watching for up to {STALE_SECONDS:.0f} s")
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        latest = _read(path)
        if latest != content:
            return latest is not None
    return False


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "pid_started": _start_of(pid),
    }


def _machine() -> str:
    """Identifies the kernel and process namespace, within which process ids are comparable."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {uuid.getnode():x}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _start_of(pid: int) -> str | None:
    """Returns a process's start by the kernel's clock, as process ids are reused.

    None for a process that has ended, zombies included, and without `/proc`.
    """
    with contextlib.suppress(OSError):
        # The second field, the program's name, may hold spaces and parentheses.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None


def _describe(content: dict[str, Any]) -> str:
    if not content:
        return "another process"
    started = datetime.datetime.fromtimestamp(content.get("started", 0)).astimezone()
    return (
        f"process {content.get('pid')} on {content.get('host')}, since {started:%Y-%m-%d %H:%M:%S}"
    )
