"""The initramfs of a guest: a static busybox, the modules it needs, and a script."""

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.guests.fetch import Kernel

MODULES = (
    *("virtio_pci", "virtiofs", "overlay"),
    *("veth", "dummy", "cls_bpf", "sch_ingress"),
)
"""For the root, then for the tests. What a kernel has built in is no file, and passed over."""

INIT = """\
#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev /host /over /root
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules/order); do busybox insmod /modules/$module; done
busybox mount -t virtiofs -o ro host /host || exec busybox poweroff -f
busybox mount -t tmpfs over /over
busybox mkdir /over/upper /over/work
busybox mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work over /root
for place in proc sys dev; do busybox mount --move /$place /root/$place; done
exec busybox switch_root /root /bin/sh @SCRIPT@
"""


def make_initramfs(kernel: Kernel, script: Path, directory: Path) -> Path:
    """Writes the initramfs of a kernel; `script` is what runs as process 1, on the host's files."""
    root = directory / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    files = {_module_name(path): path for path in kernel.modules.rglob("*.ko*")}
    contents = {name: _read_module(files[name]) for name in _with_needed(files)}
    for name, content in contents.items():
        (root / "modules" / name).write_bytes(content)
    (root / "modules/order").write_text("\n".join(contents) + "\n")
    (root / "init").write_text(INIT.replace("@SCRIPT@", str(script)))
    (root / "init").chmod(0o755)
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*"))]
    image = directory / "initramfs.cpio"
    with image.open("wb") as out:
        command = ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"]
        subprocess.run(command, input="\n".join(names).encode(), stdout=out, cwd=root, check=True)
    return image


def _module_name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def _with_needed(files: dict[str, Path]) -> Iterator[str]:
    """The modules, each after those it needs, each once."""
    done = set[str]()

    def visit(name: str) -> Iterator[str]:
        if name in done or name not in files:
            return
        done.add(name)
        for needed in _needs(_read_module(files[name])):
            yield from visit(needed)
        yield name

    for name in MODULES:
        yield from visit(name)


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _needs(module: bytes) -> list[str]:
    """What the module's .modinfo says it depends on."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return (
        [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []
    )
