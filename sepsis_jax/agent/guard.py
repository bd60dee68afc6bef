"""Run a command that must not outlive who started it: `python guard.py COMMAND...`, with a pipe as standard input.

When the pipe closes, because its owner let go or was killed, the command and all its children are stopped. Standard
library only: it is run as a file, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 10.0


def main(command: list[str]) -> int:
    """Exit status of the command, once it and all its children are gone."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches the owner too, who closes the pipe when it is done
    threading.Thread(target=_stop_at_the_end, args=(process,), daemon=True).start()
    code = process.wait()
    _signal(process, signal.SIGKILL)  # children that it left behind
    return code


def _stop_at_the_end(process: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _signal(process, signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
