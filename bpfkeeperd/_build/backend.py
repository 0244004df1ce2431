"""The build: PEP 517 and 660 hooks around setuptools, which knows neither cffi nor BPF.

As a program, ``backend.py bpf`` compiles the BPF objects alone; that takes nothing but Python.
``backend.py library DIRECTORY`` is for `make install`: all that is installed as a package of Python.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
BPF_SOURCES = TOP / "bpf"
BPF_OBJECTS = TOP / "bpfkeeperd" / "bpf"

EXTENSION = "bpfkeeperd/_build/extension.py:ffibuilder"
LIBBPF = "libbpf >= 1.1"
LICENSE = "GPL-2.0-or-later OR BSD-2-Clause"
LICENSE_FILES = ["LICENSE", "LICENSES/*.txt"]
REMEDY = (
    "on Debian and Ubuntu, apt-get install clang llvm gcc libc6-dev python3-dev pkg-config "
    "libbpf-dev libelf-dev zlib1g-dev libsystemd-dev"
)

Settings = dict[str, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """PEP 517: builds a wheel and returns its file name."""
    prepare()
    hooks = setuptools_hooks(cffi_modules=[EXTENSION])
    name: str = hooks.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """PEP 660: as `build_wheel`, but the extension goes into the checkout, to be used there."""
    prepare()
    # Python prefers other suffixes to .abi3.so: an older build of another kind would hide the new.
    for built in (TOP / "bpfkeeperd").glob("_libbpf*.so"):
        built.unlink()
    hooks = setuptools_hooks(cffi_modules=[EXTENSION])
    name: str = hooks.build_editable(wheel_directory, config_settings, metadata_directory)
    return name


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """PEP 517: packs the sources; nothing is compiled, so nothing has to be installed."""
    name: str = setuptools_hooks().build_sdist(sdist_directory, config_settings)
    return name


def build_library(directory: Path) -> None:
    """Fills a directory, which is emptied before, with the modules, the extension and the BPF
    objects, as a wheel has them; without network, by what this Python has installed."""
    prepare()
    from setuptools import setup

    # By a name that is always the same: it gets into the extension.
    work = directory.with_name(f"{directory.name}.work")
    shutil.rmtree(directory, ignore_errors=True)
    options = {
        "build": {"build_base": str(work), "build_lib": str(directory)},
        "build_py": {"compile": 0},  # what installs them knows for which Python
    }
    os.chdir(TOP)
    hook = {"cffi_modules": [EXTENSION]}
    setup(script_args=["--quiet", "build"], license=LICENSE, options=options, **hook)
    shutil.rmtree(work)


def setuptools_hooks(**keywords: Any) -> Any:
    """setuptools' hooks, calling ``setup()`` with what pyproject.toml has no place for."""
    # Not at the top: `backend.py bpf` runs where there is no setuptools.
    from setuptools import build_meta, setup

    class Hooks(build_meta._BuildMetaBackend):
        def run_setup(self, setup_script: str = "setup.py") -> None:
            # In the checkout, setuptools would put modules deleted since into the next wheel.
            with tempfile.TemporaryDirectory(prefix="bpfkeeperd-build-") as build_base:
                options = {"build": {"build_base": build_base}}
                setup(license=LICENSE, license_files=LICENSE_FILES, options=options, **keywords)

    return Hooks()


def prepare() -> None:
    """Makes sure of libbpf and brings the BPF objects up to date."""
    missing = f"it needs {LIBBPF}: {REMEDY}"
    run("pkg-config", "--print-errors", "--exists", LIBBPF, failure=missing)
    compile_bpf()


def compile_bpf() -> None:
    """Compiles every ``bpf/NAME.bpf.c`` that is newer than ``bpfkeeperd/bpf/NAME.bpf.o``."""
    BPF_OBJECTS.mkdir(exist_ok=True)
    common = [Path(__file__), *BPF_SOURCES.glob("*.h")]
    sources = {source.stem + ".o": source for source in sorted(BPF_SOURCES.glob("*.bpf.c"))}
    for name, source in sources.items():
        target = BPF_OBJECTS / name
        newest = max(path.stat().st_mtime_ns for path in [source, *common])
        if not target.exists() or target.stat().st_mtime_ns < newest:
            compile_object(source, target)
    for target in BPF_OBJECTS.glob("*.bpf.o"):
        if target.name not in sources:
            target.unlink()


def compile_object(source: Path, target: Path) -> None:
    """Compiles one BPF object with its BTF; the target is there whole or not at all."""
    print(f"compiling {source.relative_to(TOP)}", flush=True)
    # Debian keeps asm/types.h in a directory that clang searches for its own target only.
    multiarch = Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or "none")
    includes = [f"-I{multiarch}"] if multiarch.is_dir() else []
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        run(
            *("clang", "--target=bpf", "-O2", "-g", "-Wall", "-Werror", *includes),
            # BTF names the source of every line: say it as seen from the top, on any machine.
            f"-ffile-prefix-map={TOP}=.",
            *("-c", str(source.relative_to(TOP)), "-o", str(temporary)),
            failure=f"clang refuses {source.relative_to(TOP)}",
        )
        # DWARF goes, BTF stays: libbpf reads only that, and the object is a tenth of the size.
        run("llvm-strip", "-g", str(temporary), failure="llvm-strip failed")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def run(*command: str, failure: str) -> None:
    """Runs a tool of the build, whose own words go to stderr; ends the build if it fails."""
    try:
        done = subprocess.run(command, cwd=TOP, check=False)
    except FileNotFoundError:
        sys.exit(f"cannot build bpfkeeperd: {command[0]} is not installed: {REMEDY}")
    if done.returncode:
        sys.exit(f"cannot build bpfkeeperd: {failure}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bpf"]:
            compile_bpf()
        case ["library", directory]:
            build_library(Path(directory).absolute())
        case _:
            sys.exit("usage: backend.py bpf | library DIRECTORY")
