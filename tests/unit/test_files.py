"""What is said of a file that cannot be read; mountinfo as systemd 252 made it."""

import errno
import os
from pathlib import Path

import pytest

from bpfkeeperd.errors import KeeperError
from bpfkeeperd.files import hidden_by_unit, read_file, unreadable

MOUNTINFO = """\
140 95 0:69 / / rw,relatime shared:2 master:68 - overlay overlay rw
141 140 0:73 / /tmp rw,nosuid,nodev shared:3 master:85 - tmpfs tmpfs rw
157 140 0:77 /systemd/inaccessible/dir /home ro,nosuid shared:49 master:89 - tmpfs tmpfs rw
171 162 0:77 /systemd/inaccessible/dir /run/user ro,nosuid shared:41 master:89 - tmpfs tmpfs rw
172 157 8:1 /home/bpf /home/bpf ro,nosuid shared:41 master:89 - ext4 /dev/sda1 rw
192 141 0:73 /systemd-private-24fd-bpfkeeperd.service-dmfceG/tmp /tmp rw - tmpfs tmpfs rw
193 140 0:69 /var/tmp/systemd-private-24fd-bpfkeeperd.service-klIVWC/tmp /var/tmp rw - overlay o rw
194 140 0:77 /host/inaccessible/dir /srv/secret ro shared:41 - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/home/me/fw.o", "ProtectHome= of its unit hides /home from the service"),
        ("/run/user/1000/fw.o", "ProtectHome= of its unit hides /run/user from the service"),
        ("/tmp/fw.o", "PrivateTmp= of its unit hides /tmp from the service"),
        ("/var/tmp/x/fw.o", "PrivateTmp= of its unit hides /var/tmp from the service"),
        ("/srv/secret/fw.o", "InaccessiblePaths= of its unit hides /srv/secret from the service"),
        ("/home/bpf/fw.o", ""),
        ("/homes/fw.o", ""),
        ("/usr/lib/bpf/fw.o", ""),
    ],
)
def test_a_unit_that_hides_a_path_is_named(path: str, said: str) -> None:
    wanted = f"{said}: put the file elsewhere" if said else ""
    assert hidden_by_unit(path, MOUNTINFO) == wanted


def test_before_a_unit_covers_it_nothing_is_hidden() -> None:
    before = "".join(MOUNTINFO.splitlines(keepends=True)[:2])
    assert hidden_by_unit("/tmp/fw.o", before) == ""


def test_a_file_that_is_nowhere_is_not_said_to_be_hidden(tmp_path: Path) -> None:
    path = tmp_path / "fw.o"
    with pytest.raises(KeeperError) as caught:
        read_file(str(path), 9)
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


def test_root_is_told_why_it_may_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    error = OSError(errno.EACCES, "Permission denied")
    text = unreadable(str(tmp_path), error, "manifest ")
    assert text.startswith(f"cannot read manifest {tmp_path}: Permission denied: root needs the")
    assert "CAP_DAC_OVERRIDE" in text
