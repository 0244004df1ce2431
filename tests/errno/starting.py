"""Runs a daemon whose libbpf cannot ask the kernel what it can do; ends with its exit code.

Started with the shim preloaded and the arguments of the daemon.
"""

import errno
import sys
from pathlib import Path

from bpfkeeperd.__main__ import main
from tests.errno.shim import Shim, Shot

if __name__ == "__main__":
    shim = Shim(Path("/nowhere"))
    with shim.armed(Shot(5, 13, errno.EMFILE)):  # among them several of the questions
        sys.exit(main(["run", *sys.argv[1:]]))
