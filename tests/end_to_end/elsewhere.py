"""The command line as it would run on another machine, with a lease that is short enough to wait for.

Run as `python -m tests.end_to_end.elsewhere HOST COMMAND …`.
"""

from __future__ import annotations

import socket
import sys

from flows import cli
from labelqa_dask.storage import lease

SECONDS = 4.0


def main() -> None:
    host = sys.argv.pop(1)
    socket.gethostname = lambda: host
    lease.LEASE_SECONDS, lease._RENEW_SECONDS = SECONDS, SECONDS / 8  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    main()
