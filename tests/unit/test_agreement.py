"""What says the same thing in several places says the same: the unit, the rules, the manual pages,
the schema, README.md, the packages and the program."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkeeperd import commands, fields, service
from bpfkeeperd.__main__ import DEFAULT_CONFIG, command_line
from bpfkeeperd.fdstore import NAMES_MAX
from bpfkeeperd.fieldkinds import Either, Field, Kind, ListOf, MapOf, Struct
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.notify import LOAD_SECONDS
from bpfkeeperd.schema import json_schema
from tests.prometheus import shipped

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()
UNITS = sorted((TOP / "systemd").rglob("*.service"))
SETTINGS = [*UNITS, *sorted((TOP / "systemd").rglob("*.conf"))]
"""Units, and drop-ins for them."""
CONTROL = (TOP / "config/debian/control").read_text()

COMMAND_PAGE, MANIFEST_PAGE = "bpfkeeperd.8", "bpfkeeperd.yaml.5"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual pages, made as `make man` makes them."""
    directory = tmp_path_factory.mktemp("man")
    subprocess.run(
        [sys.executable, "bpfkeeperd/_build/manpages.py", str(directory)],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP)},
        check=True,
    )
    return directory


def plain(roff: str) -> str:
    """Without what marks up."""
    return re.sub(r"\\f[BIR]", "", roff).replace(r"\-", "-").replace(r"\e", "\\")


def parts(page: Path) -> dict[str, str]:
    """The text below each heading, plain but for the names of fields and options: `.TP` goes before
    the line that begins with one."""
    pieces = re.split(r"(?m)^\.S[HS] (.*)$", page.read_text())
    headings = [plain(heading).strip('"') for heading in pieces[1::2]]
    assert len(set(headings)) == len(headings)
    return dict(zip(headings, map(plain, pieces[2::2]), strict=True))


def every_field(kind: Kind, path: str = "") -> Iterator[tuple[str, Field]]:
    """Each field of the table with the path of the mapping that it is in."""
    match kind:
        case Struct(fields=members):
            for field in members:
                yield path, field
                yield from every_field(field.kind, f"{path}.{field.name}".lstrip("."))
        case ListOf(item=item):
            yield from every_field(item, f"{path}[]")
        case MapOf(value=value):
            yield from every_field(value, f"{path}.NAME")
        case Either(kinds=kinds):
            for one in kinds:
                yield from every_field(one, path)


FIELDS = list(every_field(fields.MANIFEST))


def test_there_are_fields() -> None:
    assert len(FIELDS) > 60
    assert ("objects.NAME.programs.NAME.attach[]", "cgroup") in [(at, f.name) for at, f in FIELDS]


def test_the_page_has_every_field_with_its_meaning(pages: Path) -> None:
    page = parts(pages / MANIFEST_PAGE)
    for path, field in FIELDS:
        part = page[path or "The main file"]
        same = re.search(rf"(?m)^As in (\S+):.*\b{field.name}\b", part)
        if same:  # the words are said there
            part = page[same[1]]
        assert re.search(rf"(?m)^\.TP\n{field.name} \(", part), (path, field.name)
        words = field.doc.replace("`", "").replace("…", "...").replace("~", r"\(ti")
        flat = part.replace(r"\&", "").replace(r"\(aq", "'")
        assert words in flat, (path, field.name)
        if field.default is not None and not isinstance(field.default, bool):
            assert f"default {field.default}" in flat, (path, field.name)


def test_the_schema_has_every_field_and_no_other() -> None:
    found: list[tuple[str, str]] = []

    def look(schema: object, path: str) -> None:
        if not isinstance(schema, dict):
            return
        for name, member in schema.get("properties", {}).items():
            found.append((path, name))
            look(member, f"{path}.{name}".lstrip("."))
        for one in schema.get("anyOf", []):
            look(one, path)
        look(schema.get("items"), f"{path}[]")
        look(schema.get("additionalProperties"), f"{path}.NAME")

    look(json_schema(), "")
    assert sorted(found) == sorted((path, field.name) for path, field in FIELDS)


def section(title: str) -> str:
    """A section of README.md with what is below it."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_readme_has_every_field() -> None:
    text = "".join(map(section, ("The manifest", "Hooks and targets", "What a reload does")))
    code = " ".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"(?m)^    .*", text))
    missing = [field.name for _, field in FIELDS if not re.search(rf"\b{field.name}\b", code)]
    assert missing == []


def test_the_readme_names_no_field_that_is_none() -> None:
    rows = re.findall(r"(?m)^\| ([^|]*`[^|]*) \|", section("The manifest"))
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    known = {field.name for _, field in FIELDS}
    last = {re.split(r"[.…]", name)[-1] for name in named} - {"NAME"}
    assert len(last) > 40 and last - known == set()


def test_the_readme_has_the_defaults() -> None:
    rows = re.findall(r"(?m)^\| ([^|]*`[^|]*) \| ([^|]*) \|", section("The manifest"))
    rows.reverse()  # of a name that stands twice the first counts: the other is `defaults`
    cells = {
        re.split(r"[.…]", name)[-1]: default
        for names, default in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    for field in [field for _, field in FIELDS if field.default is not None]:
        value = str(field.default)
        value = value.lower() if isinstance(field.default, bool) else value
        if field.name in cells:
            assert value in re.findall(r"[^`,\s]+", cells[field.name]), field.name
        else:
            assert f"{field.name}` ({value})" in section("The manifest"), field.name


def test_the_example_of_the_page_is_a_manifest(pages: Path) -> None:
    text = plain(parts(pages / MANIFEST_PAGE)["EXAMPLES"]).split(".nf\n")[1].split(".fi")[0]
    manifest = parse_manifest([("/etc/bpfkeeperd/bpfkeeperd.yaml", text.encode())])
    assert list(manifest.maps) == ["limits"] and list(manifest.objects) == ["filter"]


def every_command(
    parser: argparse.ArgumentParser, *above: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(above), parser
    for group in groups:
        for name, sub in group.choices.items():
            yield from every_command(sub, *above, name)


COMMANDS = dict(every_command(command_line()))


def test_the_page_has_every_command_and_option(pages: Path) -> None:
    page = parts(pages / COMMAND_PAGE)
    assert len(COMMANDS) > 12
    for name, parser in COMMANDS.items():
        assert parser.description and parser.description in page[name].replace(r"\(aq", "'"), name
        for action in parser._actions:
            spelling = [str(action.metavar), *action.option_strings][-1]
            if spelling != "--help":
                term = rf"(?m)^\.TP\n(-\w, )?{spelling}( |$)"
                assert re.search(term, page[name] + page["OPTIONS"]), (name, spelling)


def test_the_readme_has_every_command() -> None:
    table = section("Commands").split("\nAll take")[0]
    for name in COMMANDS:
        assert re.search(rf"(?m)^\|.*`{name}\b", table), name


def test_no_prose_is_about_a_command_that_is_none() -> None:
    text = (TOP / "bpfkeeperd/_build/commandpage.py").read_text()
    more = text[text.index("\nMORE = {") : text.index("\nEXIT_STATUS")]
    assert set(re.findall(r'(?m)^    "(\w+)":', more)) <= set(COMMANDS)


@pytest.mark.parametrize("name", [COMMAND_PAGE, MANIFEST_PAGE])
@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_groff_has_nothing_to_say_about_the_pages(name: str, pages: Path) -> None:
    for device in ("utf8", "ps"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-b", "-z", f"-T{device}", str(pages / name)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""


def settings(name: str) -> list[str]:
    """The values of a setting of the service, in the unit and its drop-ins."""
    lines = [line for path in SETTINGS for line in path.read_text().splitlines()]
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def test_what_the_unit_runs_is_understood() -> None:
    lines = [
        value.lstrip("-@+!:")
        for name in ("ExecStart", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop")
        for value in settings(name)
    ]
    own = [shlex.split(line)[1:] for line in lines if line.startswith("/usr/bin/bpfkeeperd ")]
    understood = [command_line().parse_args(words).command for words in own]
    assert {"run", "reload"} <= set(understood)


def test_the_unit_does_not_try_a_wrong_manifest_again(pages: Path) -> None:
    code = str(commands.CONFIG)
    assert settings("RestartPreventExitStatus") == [code]
    page = parts(pages / COMMAND_PAGE)
    assert re.search(rf"(?m)^\.TP\n{code}$", page["EXIT STATUS"])
    assert set(re.findall(r"exit status (\d\d)", "".join(page.values()))) == {code}
    assert f"{code} from `run`" in section("Commands")
    assert f"exit code {code}" in section("As a service")


def test_the_unit_has_the_directories_that_the_program_expects(
    pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    options = command_line().parse_args(["run"])
    state, run = commands.state_directory(options), commands.run_directory(options)
    assert [f"/var/lib/{name}" for name in settings("StateDirectory")] == [state]
    assert [f"/run/{name}" for name in settings("RuntimeDirectory")] == [run]
    files = parts(pages / COMMAND_PAGE)["FILES"]
    for path in (state, run, DEFAULT_CONFIG):
        assert f".TP\n{path}\n" in files
        assert f"`{path}`" in section("Commands")
    assert f'rm -rf "$states" {run}' in (TOP / "config/debian/postrm").read_text()
    assert f"states={state}\n" in (TOP / "config/debian/postrm").read_text()
    assert f"\nMANIFESTS := {os.path.dirname(DEFAULT_CONFIG)}\n" in (TOP / "Makefile").read_text()


def test_the_catalog_has_every_message() -> None:
    (catalog,) = (TOP / "systemd").glob("*.catalog")
    named = re.findall(r"(?m)^-- ([0-9a-f]{32})$", catalog.read_text())
    assert sorted(named) == sorted(str(message) for message in service.MessageId)


def test_messages_named_in_the_readme_are_those_of_the_program() -> None:
    changes = (TOP / "CHANGELOG.md").read_text()
    for text in (README, changes):
        named = set(re.findall(r"\b[0-9a-f]{32}\b", text))
        assert named and named <= {str(message) for message in service.MessageId}


def test_the_readme_has_the_limits_of_the_program() -> None:
    text = section("As a service")
    assert f"At most {NAMES_MAX:,} maps and links" in text
    assert f"it is given {LOAD_SECONDS // 60} minutes" in text


def test_what_rules_and_dashboard_name_is_in_the_readme() -> None:
    listed = set(re.findall(r"(?m)^\| `(\w+)` \|", section("Metrics")))
    recorded = {rule.name for rule in shipped.rules() if not rule.alert}
    asked = [rule.expr for rule in shipped.rules()] + [query.expr for query in shipped.queries()]
    named = {name for expr in asked for name in shipped.names(expr)} - recorded
    own = {name.removeprefix("bpfkeeper_") for name in named if name.startswith("bpfkeeper_")}
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in own - listed}
    assert len(own) > 20 and bare <= listed


def test_the_package_depends_on_what_the_project_does() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    debian = {"cffi": "python3-cffi-backend", "pyyaml": "python3-yaml"}
    debian["systemd-python"] = "python3-systemd"  # what has it in its name already has no other
    names = [re.split("[<>=~]", wanted)[0] for wanted in project["dependencies"]]
    wanted = {debian.get(name, f"python3-{name}") for name in names}
    depends = {name for name in relations("Depends") if name.startswith("python3-")}
    assert depends == wanted
    assert f"python3 ({project['requires-python'].replace('>=', '>= ')})" in CONTROL
    installed = set(makefile_list("INSTALL_PACKAGES"))
    assert wanted - {"python3-cffi-backend"} < installed and "python3-cffi" in installed


def relations(name: str) -> list[str]:
    """The packages of a field of debian/control, without versions and variables."""
    value = re.search(rf"(?m)^{name}:\n((?: .*\n)+)", CONTROL)
    assert value
    words = [line.strip(" ,").split(" ")[0] for line in value[1].splitlines()]
    return [word for word in words if not word.startswith("$")]


def makefile_list(name: str) -> list[str]:
    text = (TOP / "Makefile").read_text().replace("\\\n", " ")
    line = re.search(rf"(?m)^{name} := (.*)$", text)
    assert line
    return [
        package
        for word in line[1].split()
        for package in (makefile_list(word[2:-1]) if word.startswith("$(") else [word])
    ]


def test_make_installs_what_the_package_is_built_with() -> None:
    provided = {"debhelper-compat": "debhelper", "dh-sequence-python3": "dh-python"}
    wanted = {provided.get(name, name) for name in relations("Build-Depends")}
    assert wanted <= set(makefile_list("DEB_PACKAGES"))
