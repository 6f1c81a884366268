"""Where files lie: on a disk of this machine, or on a server.

Knows nothing of the rest of the package.
"""

from __future__ import annotations

import os
from pathlib import Path

_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "gluster")


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a file lies on this machine, as far as the system tells: no server can change or delay it."""
    device = os.stat(path).st_dev
    try:
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            before, _, after = line.partition(" - ")
            major, minor = before.split()[2].split(":")
            if os.makedev(int(major), int(minor)) == device:
                return not after.split()[0].startswith(_NETWORK_FILE_SYSTEMS)
    except OSError:
        pass
    return True
