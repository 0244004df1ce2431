"""The rules that hold the code together: who may import what, and how large a thing may be."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkeeperd.steps import Step

PACKAGE = Path(__file__).parents[2] / "bpfkeeperd"
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = [name for name in SOURCES if not name.startswith("_build/")]
"""The build backend is a program of its own, and no part of what is installed."""

ONLY_IN = {
    "yaml": {"yamlnodes.py"},
    "elftools": {"elf.py"},
    "prometheus_client": {"metrics.py"},
    "systemd": {"service.py"},
    "ssl": {"tlsfiles.py"},
    "cffi": {"_build/extension.py"},
    "termios": {"terminal.py"},
}
PURE = [
    "btf.py",
    "btfbuilder.py",
    "btfformat.py",
    "elfimage.py",
    "legacymaps.py",
    "mapbtf.py",
    "legacy.py",
    "entries.py",
    "pinrights.py",
    "nodes.py",
    "values.py",
    "fields.py",
    "fieldkinds.py",
    "fieldsattach.py",
    "targets.py",
    "decodetargets.py",
    "resolveattach.py",
    "traceplaces.py",
    "decode.py",
    "schema.py",
    "shapes.py",
    "literals.py",
    "contents.py",
    "views.py",
    "format.py",
    "readable.py",
    "state.py",
    "hooks.py",
    "layout.py",
    "mapcolumns.py",
    "mapflags.py",
    "progtypes.py",
    "ownmaps.py",
    "maptypes.py",
    "mapmemory.py",
    "maprules.py",
    "maprefusal.py",
    "explain.py",
    "explainerrno.py",
    "compare.py",
    "desired.py",
    "observed.py",
    "ordering.py",
    "resolveorder.py",
    "targetnames.py",
    "patterns.py",
    "backoff.py",
    "heal.py",
    "health.py",
    "healthentry.py",
    "fieldshealth.py",
    "resolvehealth.py",
    "withheld.py",
    "actions.py",
    "draft.py",
    "generations.py",
    "globaldata.py",
    "grouping.py",
    "maprules.py",
    "resolve.py",
    "resolvemaps.py",
    "foreign.py",
    "plan.py",
    "stubcode.py",
    "planstubs.py",
    "structops.py",
    "drift.py",
    "conflicts.py",
    "statusline.py",
    "churn.py",
    "snapshot.py",
    "celltext.py",
    "amounts.py",
    "columns.py",
    "fullness.py",
    "mapstable.py",
    "families.py",
    "exposition.py",
    "series.py",
    "moment.py",
    "render.py",
    "suggest.py",
    "verifier.py",
    "errors.py",
    "capabilities.py",
    "findings.py",
    "judge.py",
    "needs.py",
    "doctortable.py",
]
MAY_IMPORT = {
    *("collections", "contextlib", "dataclasses", "difflib", "enum", "errno", "functools"),
    *("hashlib", "ipaddress", "math", "posixpath", "re", "struct", "sys", "typing"),
    *("unicodedata", "zlib"),
}
STRERROR_ONLY = "errors.py"
"""It needs os.strerror(), and nothing else of os."""

LINES_OF_A_FUNCTION_MAX = 60
LINES_OF_A_MODULE_MAX = 450


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, wherever that stands, by its full name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module, names, level):
                assert level == 0, "no relative imports"
                yield module or ""
                yield from (f"{module}.{name.name}" for name in names)


def top_level(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 40 and set(PURE) <= set(MODULES)


@pytest.mark.parametrize(("package", "modules"), ONLY_IN.items(), ids=list(ONLY_IN))
def test_a_package_is_imported_in_one_place(package: str, modules: set[str]) -> None:
    users = {name for name, tree in SOURCES.items() if package in top_level(imports(tree))}
    assert users == modules


def test_no_other_package_is_imported() -> None:
    known = {*sys.stdlib_module_names, *ONLY_IN, "bpfkeeperd"}
    for name in MODULES:
        assert top_level(imports(SOURCES[name])) <= known, name


def test_only_the_kernel_package_uses_the_extension() -> None:
    users = {
        name
        for name in MODULES
        if any(imported.startswith("bpfkeeperd._libbpf") for imported in imports(SOURCES[name]))
    }
    assert users and all(name.startswith("kernel/") for name in users)


def test_nobody_reaches_into_the_kernel_package() -> None:
    for name in MODULES:
        if not name.startswith("kernel/"):
            inside = {
                imported
                for imported in imports(SOURCES[name])
                if re.match(r"bpfkeeperd\.kernel\.[a-z_]+\.", f"{imported}.")
                and (PACKAGE / "kernel" / f"{imported.split('.')[2]}.py").exists()
            }
            assert not inside, name


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_imports_only_pure_ones(name: str) -> None:
    """No os, no clock, no logging, no socket, no kernel."""
    allowed = {module.removesuffix(".py") for module in PURE}
    for imported in imports(SOURCES[name]):
        first, _, rest = imported.partition(".")
        if imported == "bpfkeeperd":
            continue  # what is taken from it follows by its own name
        if first == "bpfkeeperd":
            assert rest.split(".")[0] in allowed, f"{name} imports {imported}"
        elif not (name == STRERROR_ONLY and imported == "os"):
            assert first in MAY_IMPORT, f"{name} imports {imported}"


def test_errors_take_nothing_else_of_os() -> None:
    used = {
        node.attr
        for node in ast.walk(SOURCES[STRERROR_ONLY])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert used == {"strerror"}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_opens_nothing(name: str) -> None:
    calls = {
        node.func.id
        for node in ast.walk(SOURCES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


def test_functions_can_be_seen_whole() -> None:
    too_long = {
        f"{name}:{node.name}": length
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LINES_OF_A_FUNCTION_MAX
    }
    assert not too_long


def test_modules_are_one_subject() -> None:
    lengths = {name: len((PACKAGE / name).read_text().splitlines()) for name in SOURCES}
    assert not {name: n for name, n in lengths.items() if n > LINES_OF_A_MODULE_MAX}


def test_every_step_is_taken_somewhere() -> None:
    used = {
        node.attr
        for name in MODULES
        if name != "steps.py"
        for node in ast.walk(SOURCES[name])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Step"
    }
    assert used == {step.name for step in Step}


def test_nothing_is_left_to_do() -> None:
    words = re.compile("NotImplemented" + "Error|TO" + "DO|FIX" + "ME|XX" + "X")
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.[ch]"), *PACKAGE.rglob("*.pyi")]):
        if path.name != "_libbpf.c":  # made by the build
            assert not words.search(path.read_text()), path.name


def test_every_module_says_what_it_is() -> None:
    assert not [name for name in MODULES if not ast.get_docstring(SOURCES[name])]


def test_every_module_is_in_the_table_of_modules() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    table = text[text.index("| module | does") : text.index("`tests/unit/test_structure.py` holds")]
    named = set(re.findall(r"\w+", table))
    modules = {name.removesuffix(".py") for name in MODULES if "/" not in name}
    assert modules - named == {"__init__"}
