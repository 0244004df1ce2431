"""Whose files are taken: paths walked in a real tree, with real owners and modes."""

import errno
import hashlib
import itertools
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfkeeperd import trust
from bpfkeeperd.accounts import private_group, user_id
from bpfkeeperd.entries import ObjectEntry
from bpfkeeperd.errors import KeeperError, ManifestError, UntrustedError
from bpfkeeperd.manifest import read_files
from bpfkeeperd.sources import Sources
from bpfkeeperd.trust import Files, Trust
from tests.conftest import BuildObject, needs_root

ALICE = 12345
"""A user without a name, whose private group has the same number."""
OURS = "ours"


@pytest.fixture
def tree() -> Iterator[Path]:
    """``a/b/file`` in a directory that everybody can reach, below /tmp with its sticky bit."""
    former = os.umask(0o022)
    top = Path(tempfile.mkdtemp(prefix="bpfkeeperd-trust-")).resolve()
    try:
        top.chmod(0o755)
        (top / "a/b").mkdir(parents=True)
        (top / "a/b/file").write_text(OURS)
        yield top
    finally:
        os.umask(former)
        shutil.rmtree(top)


def read(path: Path, *users: int) -> str:
    with Files(Trust(frozenset(users))) as files:
        return files.read(str(path), 1 << 20, "manifest ").decode()


def refusal(path: Path, *users: int) -> str:
    """Why a file is not taken, after the part that all messages have."""
    with pytest.raises(UntrustedError) as caught:
        read(path, *users)
    before = f"cannot read manifest {path}: "
    assert str(caught.value).startswith(before)
    return str(caught.value).removeprefix(before)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


# ---- who may write


@pytest.mark.parametrize(
    ("component", "mode", "why"),
    [
        ("a/b/file", 0o664, "group GROUP (mode 0664): chmod g-w PATH"),
        ("a/b/file", 0o646, "everybody (mode 0646): chmod go-w PATH"),
        ("a/b/file", 0o1666, "everybody (mode 1666): chmod go-w PATH"),
        ("a/b", 0o775, "group GROUP (mode 0775): chmod g-w PATH"),
        ("a", 0o777, "everybody (mode 0777): chmod go-w PATH"),
    ],
)
@needs_root
def test_what_others_can_write_to(tree: Path, component: str, mode: int, why: str) -> None:
    path = tree / component
    os.chown(path, 0, ALICE)
    path.chmod(mode)
    why = why.replace("GROUP", str(ALICE)).replace("PATH", str(path))
    assert refusal(tree / "a/b/file") == f"{path} is writable by {why}"


@needs_root
def test_the_group_of_root_is_no_private_group(tree: Path) -> None:
    (tree / "a/b/file").chmod(0o664)
    assert refusal(tree / "a/b/file").startswith(f"{tree}/a/b/file is writable by group root")


@pytest.mark.parametrize("component", ["a", "a/b", "a/b/file"])
@needs_root
def test_what_somebody_else_owns(tree: Path, component: str) -> None:
    path = tree / component
    os.chown(path, ALICE, 0)
    mode = stat.S_IMODE(path.stat().st_mode)
    assert refusal(tree / "a/b/file") == (
        f"{path} belongs to user {ALICE} (mode {mode:04o}): chown root {path}, or take what that"
        f" user can change with --trust {ALICE}"
    )
    assert read(tree / "a/b/file", ALICE) == OURS


@needs_root
def test_the_files_of_a_service_are_not_for_the_option(tree: Path) -> None:
    """Of users below 1000: whoever breaks into the service would have root."""
    os.chown(tree / "a", 33, 0)
    assert refusal(tree / "a/b/file").endswith(f"(mode 0755): chown root {tree}/a")


@needs_root
def test_a_component_with_a_blank_is_quoted_in_the_remedy(tree: Path) -> None:
    (tree / "a/b").rename(tree / "a/b c")
    (tree / "a/b c").chmod(0o777)
    assert refusal(tree / "a/b c/file").endswith(f"chmod go-w '{tree}/a/b c'")


def test_a_sticky_directory_may_be_written_to(tree: Path) -> None:
    """What others make there has their name, and they cannot rename ours."""
    (tree / "a").chmod(0o1777)
    assert read(tree / "a/b/file") == OURS


@needs_root
def test_what_others_made_in_a_sticky_directory(tree: Path) -> None:
    (tree / "a").chmod(0o1777)
    os.chown(tree / "a/b", ALICE, ALICE)
    assert f"{tree}/a/b belongs to user {ALICE}" in refusal(tree / "a/b/file")


def test_drop_ins_are_not_taken_from_a_sticky_directory(tree: Path) -> None:
    """Others could put some there."""
    (tree / "main.yaml").write_text("version: 1")
    (tree / "conf.d").mkdir()
    (tree / "conf.d").chmod(0o1777)
    with pytest.raises(ManifestError) as caught:
        read_files(str(tree / "main.yaml"))
    assert str(caught.value) == (
        f"cannot read the manifest's drop-ins {tree}/conf.d: {tree}/conf.d is writable by everybody"
        f" (mode 1777): chmod go-w {tree}/conf.d"
    )


@needs_root
def test_a_drop_in_of_somebody_else(tree: Path) -> None:
    (tree / "main.yaml").write_text("version: 1")
    (tree / "conf.d").mkdir()
    (tree / "conf.d/10.yaml").touch()
    os.chown(tree / "conf.d/10.yaml", ALICE, ALICE)
    with pytest.raises(ManifestError, match=rf"conf.d/10.yaml belongs to user {ALICE}"):
        read_files(str(tree / "main.yaml"))
    assert len(read_files(str(tree / "main.yaml"), Trust(frozenset({ALICE})))) == 2


# ---- the group of a trusted user


@needs_root
def test_the_private_group_of_a_trusted_user(tree: Path) -> None:
    """As a checkout is with umask 002."""
    for path in (tree / "a", tree / "a/b", tree / "a/b/file"):
        os.chown(path, ALICE, ALICE)
        path.chmod(path.stat().st_mode | 0o020)
    assert read(tree / "a/b/file", ALICE) == OURS
    os.chown(tree / "a/b", ALICE, ALICE + 1)
    assert refusal(tree / "a/b/file", ALICE).startswith(
        f"{tree}/a/b is writable by group {ALICE + 1} (mode 0775)"
    )


@needs_root
def test_a_user_takes_his_own_files(tree: Path) -> None:
    """`check` as an ordinary user; with his private group, too."""
    for path in (tree / "a", tree / "a/b", tree / "a/b/file"):
        os.chown(path, ALICE, ALICE)
        path.chmod(path.stat().st_mode | 0o020)
    with as_user(ALICE):
        assert read(tree / "a/b/file") == OURS
    with as_user(ALICE + 1):
        assert f"{tree}/a belongs to user {ALICE}" in refusal(tree / "a/b/file")


@needs_root
def test_an_acl_can_hide_behind_the_group(tree: Path) -> None:
    """Its mask is what the group's bits show."""
    path = tree / "a/b/file"
    os.chown(path, ALICE, ALICE)
    owner, user, group, mask, others = 1, 2, 4, 16, 32
    entries = [(owner, 6, -1), (user, 6, 1), (group, 4, -1), (mask, 6, -1), (others, 4, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("no ACLs on this file system")
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    why = f"{path} has an access control list: setfacl --remove-all {path}"
    assert refusal(path, ALICE) == why


USERS = """\
root:x:0:0::/:/bin/sh
alice:x:4001:4001::/:/bin/sh
alias:x:4001:4001::/:/bin/sh
bob:x:4002:4100::/:/bin/sh
carol:x:4003:4100::/:/bin/sh
dave:x:4004:4004::/:/bin/sh
1234:x:4005:4005::/:/bin/sh
"""
GROUPS = "root:x:0:\nalice:x:4001:alias\nstaff:x:4100:\ndave:x:4004:bob,dave\n4005:x:4005:\n"


@needs_root
def test_whose_group_is_private(tmp_path: Path) -> None:
    """In a mount namespace of its own, where /etc/passwd and /etc/group are others."""
    (tmp_path / "passwd").write_text(USERS)
    (tmp_path / "group").write_text(GROUPS)
    code = (
        "from bpfkeeperd.accounts import private_group as g, user_id as u\n"
        "print([g(uid) for uid in (4001, 4002, 4004, 4005, 4009, 4100)])\n"
        "print(u('alice'), u('1234'), u('4001'), u('nobody-of-that-name'), u('-1'), u(str(1<<32)))"
    )
    mounts = [f"mount --bind {tmp_path}/{name} /etc/{name}" for name in ("passwd", "group")]
    script = " && ".join([*mounts, 'exec "$@"'])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    # bob shares it, dave's has another member, 4009 has neither name nor group, 4100 is a group's
    assert done.stdout.splitlines() == [
        "[4001, None, None, 4005, 4009, None]",
        "4001 4005 4001 None None None",
    ]


def test_root_is_in_every_trust() -> None:
    assert user_id("root") == 0
    assert private_group(0) in (0, None)


# ---- symbolic links


def test_links_are_followed(tree: Path) -> None:
    (tree / "far").symlink_to("a/b")
    (tree / "further").symlink_to(tree / "far")
    (tree / "a/b/again").symlink_to("../b/./file")
    (tree / "last").symlink_to("further//again")
    assert read(tree / "last") == OURS


def test_up_from_where_a_link_leads_to(tree: Path) -> None:
    """``link/..`` is the directory above the link's target, not the one that the link is in."""
    (tree / "elsewhere/deep").mkdir(parents=True)
    (tree / "elsewhere/file").write_text("of elsewhere")
    (tree / "deep").symlink_to("elsewhere/deep")
    (tree / "file").write_text("of here")
    (tree / "up").symlink_to("deep/../file")
    assert read(tree / "up") == (tree / "up").read_text() == "of elsewhere"
    (tree / "top").symlink_to("/../../.." + str(tree / "file"))
    assert read(tree / "top") == "of here"


@needs_root
def test_a_link_of_somebody_else(tree: Path) -> None:
    """In a sticky directory, say; its mode, which is always 0777, does not count."""
    for link in ("for-a-directory", "for-a-file"):
        (tree / link).symlink_to("a/b/file" if "file" in link else "a/b")
    assert read(tree / "for-a-directory/file") == read(tree / "for-a-file") == OURS
    for link in ("for-a-directory", "for-a-file"):
        os.chown(tree / link, ALICE, ALICE, follow_symlinks=False)
    why = f"belongs to user {ALICE} (mode 0777)"
    assert refusal(tree / "for-a-directory/file").startswith(f"{tree}/for-a-directory {why}")
    assert refusal(tree / "for-a-file").startswith(f"{tree}/for-a-file {why}")


@needs_root
def test_what_a_link_leads_through(tree: Path) -> None:
    """The components of its target are judged like those of a path."""
    (tree / "theirs").mkdir()
    (tree / "theirs/file").touch()
    os.chown(tree / "theirs", ALICE, ALICE)
    (tree / "link").symlink_to("theirs/file")
    assert f"{tree}/theirs belongs to user {ALICE}" in refusal(tree / "link")


def test_links_in_a_circle(tree: Path) -> None:
    (tree / "one").symlink_to("two")
    (tree / "two").symlink_to(tree / "one")
    for path in (tree / "one", tree / "one/file"):
        with pytest.raises(KeeperError) as caught:
            read(path)
        why = "Too many levels of symbolic links"
        assert str(caught.value) == f"cannot read manifest {path}: {why}"


def test_as_many_links_as_the_kernel_follows(tree: Path) -> None:
    (tree / "link0").symlink_to("a/b/file")
    for number in range(1, trust.LINKS_MAX + 1):
        (tree / f"link{number}").symlink_to(f"link{number - 1}")
    last = tree / f"link{trust.LINKS_MAX - 1}"
    assert last.read_text() == read(last) == OURS
    with pytest.raises(KeeperError, match="Too many levels"):
        read(tree / f"link{trust.LINKS_MAX}")


_ELSEWHERE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0
assert libc.mount(b"none", sys.argv[1].encode(), b"tmpfs", 0, None) == 0
os.makedirs(sys.argv[1] + "/b")
with open(sys.argv[1] + "/b/file", "w") as file:
    file.write("theirs")
os.chroot(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


@needs_root
def test_links_of_proc_can_lead_into_another_root(tree: Path) -> None:
    """Their text is a path there: following it here would read another file."""
    assert read(Path(f"/proc/self/root{tree}/a/b/file")) == OURS
    command = [sys.executable, "-c", _ELSEWHERE, str(tree / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        link = f"/proc/{process.pid}/root"
        path = Path(link, "b/file")
        assert path.read_text() == "theirs" and os.readlink(link) == str(tree / "a")
        assert refusal(path) == f"{link} leads where nothing can be checked"


# ---- what is no file


def no_regular_file(tree: Path) -> Path:
    os.mkfifo(tree / "fifo")
    return tree / "fifo"


def no_file(tree: Path) -> Path:
    return tree / "a/none/file"


def no_directory(tree: Path) -> Path:
    return tree / "a/b/file/more"


def a_directory(tree: Path) -> Path:
    return tree / "a/b"


def a_link_to_a_directory(tree: Path) -> Path:
    (tree / "link").symlink_to("a/b/.")
    return tree / "link"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (no_regular_file, "it is no regular file"),
        (no_file, "No such file or directory"),
        (no_directory, "Not a directory"),
        (a_directory, "it is a directory"),
        (a_link_to_a_directory, "Is a directory"),
    ],
)
def test_what_cannot_be_read(tree: Path, make: Callable[[Path], Path], why: str) -> None:
    path = make(tree)
    with pytest.raises(KeeperError) as caught:
        read(path)
    assert str(caught.value) == f"cannot read manifest {path}: {why}"
    assert not isinstance(caught.value, UntrustedError)


@pytest.mark.parametrize("command", ["check", "reload"])
def test_a_current_directory_that_is_gone(command: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    arguments = [sys.executable, "-c", _IN_NO_DIRECTORY, str(gone), command, "-c", "main.yaml"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the current directory is gone: name it from / on" in done.stderr
    assert "Traceback" not in done.stderr


_IN_NO_DIRECTORY = """
import os, sys
from bpfkeeperd.__main__ import main
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


# ---- once for all files, and nothing exchanged in between


def test_a_directory_is_walked_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a link, too: 100 files are 100 times open and close, and little more."""
    for number in range(100):
        (tree / f"a/b/{number}").write_text(str(number))
    (tree / "link").symlink_to("a")
    opened: list[object] = []
    really = os.open

    def counted(path: str, *arguments: int, dir_fd: int | None = None) -> int:
        opened.append(path)
        return really(path, *arguments, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", counted)
    with Files() as files:
        for number in range(100):
            assert files.read(f"{tree}/link/b/{number}", 99) == str(number).encode()
    components = len((tree / "a/b").parts) + 2  # the link is tried as a directory first
    assert len(opened) == 100 + components, opened[:20]


def test_directories_are_let_go_of(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of them are open than that, however many there are; none afterwards."""
    monkeypatch.setattr(trust, "DIRECTORIES_MAX", 10)
    before = len(os.listdir("/proc/self/fd"))
    with Files() as files:
        for number in range(50):
            directory = tree / f"a/{number}"
            directory.mkdir()
            (directory / "file").write_text(str(number))
            assert files.read(str(directory / "file"), 99) == str(number).encode()
            assert len(os.listdir("/proc/self/fd")) - before < 20
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
def test_what_is_refused_leaves_nothing_open(tree: Path) -> None:
    (tree / "a/b/link").symlink_to("file")
    before = len(os.listdir("/proc/self/fd"))
    for component in ("a", "a/b", "a/b/link", "a/b/file"):
        os.chown(tree / component, ALICE, ALICE, follow_symlinks=False)
        refusal(tree / "a/b/link")
        os.chown(tree / component, 0, 0, follow_symlinks=False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_exchanged_after_it_was_judged(tree: Path) -> None:
    """What was judged is what is read from, to the end of the reload."""
    (tree / "a/b/second").write_text(OURS)
    with Files() as files:
        assert files.read(f"{tree}/a/b/file", 99) == OURS.encode()
        (tree / "a/b").rename(tree / "judged")
        (tree / "a/b").mkdir(mode=0o777)
        (tree / "a/b/second").write_text("theirs")
        assert files.read(f"{tree}/a/b/second", 99) == OURS.encode()


def test_a_file_that_is_exchanged_all_the_while(tree: Path, build_object: BuildObject) -> None:
    """The bytes that are hashed are those that are loaded, whole, of one version or the other."""
    versions = [build_object("counter", STEP=step).read_bytes() for step in (1, 2)]
    sums = {hashlib.sha256(data).hexdigest() for data in versions}
    assert len(sums) == 2
    path = tree / "a/b/one.bpf.o"
    path.write_bytes(versions[0])
    done = threading.Event()

    def exchange() -> None:
        for data in itertools.cycle(versions):
            (tree / "a/new").write_bytes(data)
            (tree / "a/new").rename(path)
            if done.is_set():
                return

    exchanging = threading.Thread(target=exchange)
    exchanging.start()
    entry = ObjectEntry("one", str(path))
    seen = set()
    try:
        for _ in range(2000):
            with Files() as files, Sources() as sources:
                found = sources.read(entry, {}, files)
                assert hashlib.sha256(sources.data["one"]).hexdigest() == found.sha256
                sources.open("one").close()
            seen.add(found.sha256)
            if seen == sums:
                break
    finally:
        done.set()
        exchanging.join()
    assert seen == sums
