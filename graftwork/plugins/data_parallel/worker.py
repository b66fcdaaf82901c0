"""What `graftwork launch` runs as every rank: the script, and last words if it fails."""

from __future__ import annotations

import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

from ...errors import ConfigError, GraftworkError, RankError
from . import group as groups
from .supervisor import FOLDER, Status, end_with_parent


def main(argv: list[str]) -> None:
    """Run the script `argv[0]` as `__main__` with the other arguments."""
    end_with_parent()
    rank = int(os.environ.get("PMI_RANK", "0"))
    where = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "step": 0, "tensor": ""}
    status = Status(os.environ.get(FOLDER), rank)
    status.write(where)
    if threads := int(os.environ.get("GRAFTWORK_RANK_THREADS", "0")):
        from graftwork import set_num_threads

        set_num_threads(threads)
    error: BaseException | None = None
    try:
        if not Path(argv[0]).is_file():
            raise ConfigError(f"{where['host']} has no script {argv[0]}; all hosts need it at the same path")
        sys.argv, sys.path[0] = list(argv), str(Path(argv[0]).resolve().parent)
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        error = end if end.code not in (None, 0) else None
    except BaseException as failure:
        error = failure
    if (group := groups.current()) is not None:
        where |= group.comm.where
    sys.stdout.flush()
    if error is None:
        status.write(where | {"ended": "well"})
        return  # MPI_Finalize waits for the others
    if not isinstance(error, (GraftworkError, SystemExit)):
        traceback.print_exception(error)
    print(f"graftwork: rank {rank} (host {where['host']}), step {where['step']}: {type(error).__name__}: {error}",
          file=sys.stderr, flush=True)  # fmt: skip
    kind = "gave up" if isinstance(error, RankError) else "failed"
    status.write(where | {"ended": kind, "error": f"{type(error).__name__}: {error}"[:200]})
    os._exit(1)  # MPI_Finalize would wait for ranks that may be gone


if __name__ == "__main__":
    main(sys.argv[1:])
