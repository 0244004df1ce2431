"""The page bpfkeeperd(8): every command and option of the parser, and prose around them."""

import argparse
from collections.abc import Iterator

import roff

from bpfkeeperd import __version__, commands
from bpfkeeperd.__main__ import DEFAULT_CONFIG, command_line

DESCRIPTION = (
    "`bpfkeeperd` reads one manifest of eBPF programs and maps, see bpfkeeperd.yaml(5). It pins the"
    " maps by name, as libbpf's `LIBBPF_PIN_BY_NAME` does, loads new versions of the programs"
    " against the maps that are there already, and swaps them into the running attachments. The"
    " IDs of the maps and their contents stay, and no event is missed.",
    "As a daemon (`bpfkeeperd run`) it also puts right what drifts from the manifest as it was last"
    " loaded, and serves metrics to Prometheus. A reload with a mistake in it changes nothing: what"
    " ran goes on running.",
    "Stopping the daemon, upgrading or removing it leaves programs attached and maps pinned."
    " `bpfkeeperd unload` is the way to take them down.",
)

MORE = {
    "run": "It tells the service manager when everything is pinned and attached. A manifest with a mistake in it ends it with exit status 78.",
    "check": "It needs no root, but can ask the kernel for less without. Loads nothing to stay.",
    "plan": "Every action of a reload is a line, and so is what would be refused. With `--verify`"
    " the programs are loaded and let go of again; nothing is attached or pinned.",
    "apply": "For machines on which no daemon runs: it loads, pins and attaches, and ends. Nothing"
    " is put right afterwards before the next time.",
    "reload": "Without `--wait` it only asks. With it, it prints what was done, and fails when"
    " something failed.",
    "status": "It fails when a map is not pinned, an attachment is down, or something is refused.",
    "metrics": "What a daemon alone knows, such as the number of its reloads, begins at 0.",
    "dump": "Keys and values are shown by the map's BTF. The path of a pin and `id:`NUMBER need no"
    " manifest.",
    "wait": "For scripts that follow a map: `id=$(bpfkeeperd wait MAP --id \"$id\")`.",
    "unload": "The daemon has to be stopped. Maps stay pinned, with their contents; `--maps` unpins"
    " those that were pinned here, and then their contents are lost.",
}
"""What the parser's own words leave out."""

EXIT_STATUS = (
    (commands.OK, "All is well."),
    (commands.FAILED, "It failed, if only in part."),
    (
        commands.BAD_MANIFEST,
        "The manifest is wrong, or the command line is. `run` ends with"
        f" {commands.CONFIG} then, and `reload --wait` with {commands.FAILED}.",
    ),
    (commands.CHANGES, "`plan --exit-code` found something to do."),
    (
        commands.CONFIG,
        "The manifest is wrong (of `run`): the service manager need not try again.",
    ),
    (130, "It was interrupted, by Ctrl-C."),
)

SIGNALS = (
    ("SIGHUP", "The daemon reloads. Nobody is told what came of it, but the journal."),
    (
        "SIGTERM, SIGINT",
        "The daemon ends. Programs stay attached, and maps pinned. Programs on trial are rolled"
        " back before, also by `apply`.",
    ),
    ("SIGKILL", "Does no harm: the next start goes on where it was, also in the midst of a reload."),
)

FILES = (
    (DEFAULT_CONFIG, "The manifest, see bpfkeeperd.yaml(5)."),
    (
        "/etc/bpfkeeperd/conf.d/*.yaml",
        "More maps and objects. These files, object files and the directories above them all are"
        " taken only if nobody but root can change them; but see `--trust`.",
    ),
    ("/sys/fs/bpf", "The pins of the maps, if the manifest names no other `pin_root`."),
    (
        "/sys/fs/bpf/bpfkeeperd",
        "The daemon's own directory in the pin root: pins of programs and attachments.",
    ),
    (
        "/var/lib/bpfkeeperd",
        "A file for each pin root: who made each pin, and ID changes. Losing it breaks nothing, but"
        " counts begin anew, and `unload --maps` then leaves those pins alone.",
    ),
    ("/run/bpfkeeperd", "The socket through which commands ask the daemon; for root alone."),
    (
        "/usr/share/bpfkeeperd",
        "Settings of the service for special cases (`systemd`), rules and dashboard for the metrics"
        " (`prometheus`, `grafana`).",
    ),
    ("/usr/share/doc/bpfkeeperd", "README.md with all the rest, and examples."),
)

ENVIRONMENT = (
    ("STATE_DIRECTORY, RUNTIME_DIRECTORY", "Stand for `--state-dir` and `--run-dir`."),
    ("NO_COLOR", "No colours at a terminal."),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS, JOURNAL_STREAM",
        "Set by the service manager, see sd_notify(3), sd_listen_fds(3) and systemd.exec(5).",
    ),
)

SERVICE = (
    "`systemctl start bpfkeeperd` returns when everything is pinned and attached. `systemctl reload"
    " bpfkeeperd` waits for the outcome and fails when the reload failed; the service stays up, and"
    " its status line says what it keeps. The service is restarted when it fails or no longer"
    " answers the watchdog, but not after exit status 78.",
    "systemd keeps a descriptor of each kept map while the daemon is away, see"
    " FileDescriptorStoreMax= in systemd.service(5): a restart pins a map again whose pin was lost.",
    "With `bpfkeeperd-metrics.socket` enabled, systemd listens for scrapes, so that a restart"
    " refuses none; it has to listen before the daemon starts.",
    "Entries of the journal have fields of their own, which begin with `BPFKEEPERD_`, and a"
    " `MESSAGE_ID` for each kind: `journalctl -u bpfkeeperd -o verbose` shows them.",
)

TROUBLE = (
    "Programs serve and maps are kept without the daemon, and a failed reload leaves what ran"
    " running: there is time. What is wrong is said by the first of these that says anything:",
    "systemctl status bpfkeeperd\njournalctl -xeu bpfkeeperd\nbpfkeeperd status\n"
    "bpfkeeperd check\nbpfkeeperd doctor",
)

FAULTS = (
    (
        "status=78/CONFIG",
        "The manifest is wrong; the journal names file, line and column. Correct it until"
        " `bpfkeeperd check` finds no fault, then `systemctl start bpfkeeperd`.",
    ),
    (
        "reload rejected, applied in part",
        "The reload failed, wholly or for what the journal names. Correct that, or put the former"
        " files back, and reload; `bpfkeeperd reload --wait -v` shows all that the verifier says.",
    ),
    (
        "... of its unit hides ... from the service",
        "The service does not see /home, /root and /run/user, and has /tmp and /var/tmp of its own:"
        " put the file elsewhere.",
    ),
    (
        "it takes CAP_...",
        "The unit does not allow it. Copy the drop-in for it from /usr/share/bpfkeeperd/systemd to"
        " /etc/systemd/system/bpfkeeperd.service.d, `systemctl daemon-reload`, and restart.",
    ),
    (
        "no answer to scrapes from other machines",
        "The unit lets in this machine's alone; the drop-in metrics-network.conf lets in the others.",
    ),
    (
        "another keeper holds the pin root",
        "The daemon runs already, or `bpfkeeperd apply` is at work: reload instead.",
    ),
    (
        "... is pinned, but the service manager kept ...",
        "Somebody pinned another map while no daemon ran. To keep that one: `bpfkeeperd reload"
        " --wait --keep-pinned`; to have the other one back: remove the pin.",
    ),
    (
        "pin root ... is not on a bpffs",
        "It was unmounted. `systemctl restart bpfkeeperd` mounts /sys/fs/bpf and pins again what"
        " was kept. Do not stop it before: that gives the kept maps up.",
    ),
    (
        "Start request repeated too quickly",
        "It failed ten times in two minutes: `systemctl reset-failed bpfkeeperd`, then start it.",
    ),
)

EXAMPLES = (
    ("Look at a manifest, at what it would do, and do it:",
     "bpfkeeperd check\nbpfkeeperd plan --verify\nsystemctl reload bpfkeeperd"),
    ("The kept maps, live, and what is in one of them:",
     "bpfkeeperd maps --watch\nbpfkeeperd dump connects --limit 20"),
    ("Take everything down:",
     "systemctl stop bpfkeeperd\nbpfkeeperd unload --maps"),
)  # fmt: skip

SEE_ALSO = "bpfkeeperd.yaml(5), systemctl(1), journalctl(1), bpf(2), bpf-helpers(7), tc-bpf(8)"


def page() -> str:
    """The whole page."""
    parser = command_line()
    named = dict(_commands(parser))
    common = _common(list(named.values()))
    parts = [
        roff.section("name"),
        r"bpfkeeperd \- keeper of pinned eBPF maps and the programs around them",
        roff.section("synopsis"),
        *(_synopsis(name, sub, common) for name, sub in named.items()),
        roff.section("description"),
        *map(roff.paragraph, DESCRIPTION),
        roff.section("commands"),
        *(part for name, sub in named.items() for part in _command(name, sub, common)),
        roff.section("options"),
        roff.paragraph("Every command shows its own with `--help`. Of every command but `explain`:"),
        *(_option(parser, action) for action in common),
        roff.paragraph("Without a command:"),
        *(_option(parser, action) for action in _own(parser, [])),
        roff.section("exit status"),
        *(roff.item(roff.bold(str(code)), words) for code, words in EXIT_STATUS),
        *_terms("signals", SIGNALS),
        *_terms("files", FILES),
        *_terms("environment", ENVIRONMENT),
        roff.section("as a service"),
        *map(roff.paragraph, SERVICE),
        roff.section("when something is wrong"),
        roff.paragraph(TROUBLE[0]),
        roff.example(TROUBLE[1]),
        *(roff.item(roff.bold(words), what) for words, what in FAULTS),
        roff.section("examples"),
        *(part for words, lines in EXAMPLES for part in (roff.paragraph(words), roff.example(lines))),
        roff.section("see also"),
        roff.text(SEE_ALSO),
    ]
    return roff.page("bpfkeeperd", 8, __version__, parts)


def _commands(parser: argparse.ArgumentParser, *above: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command by its name, also `explain errno`, in the order of `--help`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                within = list(_commands(sub, *above, name))
                yield from within or [(" ".join((*above, name)), sub)]


def _common(commands: list[argparse.ArgumentParser]) -> list[argparse.Action]:
    """The options that every command has which reads a manifest."""
    readers = [_own(sub, []) for sub in commands]
    readers = [own for own in readers if any("--config" in action.option_strings for action in own)]
    strings = [{tuple(action.option_strings) for action in own} for own in readers]
    everywhere = set.intersection(*strings)
    return [action for action in readers[0] if tuple(action.option_strings) in everywhere]


def _own(parser: argparse.ArgumentParser, common: list[argparse.Action]) -> list[argparse.Action]:
    """Options and arguments, without those that all have, and without --help."""
    known = {tuple(action.option_strings) for action in common if action.option_strings}
    return [
        action
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        and tuple(action.option_strings) not in known
    ]


def _synopsis(name: str, sub: argparse.ArgumentParser, common: list[argparse.Action]) -> str:
    own = sorted(_own(sub, common), key=lambda action: not action.option_strings)
    either = [group._group_actions for group in sub._mutually_exclusive_groups]
    alone = [[action] for action in own if not any(action in group for group in either)]
    words = [
        f"[{' | '.join(map(_spelling, group))}]"
        if group[0].option_strings or group[0].nargs == "?"
        else _spelling(group[0])
        for group in [*(group for group in either if group), *alone]
    ]
    options = [] if name.startswith("explain") else [roff.italic("OPTIONS")]
    line = " ".join([roff.bold(name), *(f"[{word}]" for word in options), *words])
    return f".SY bpfkeeperd\n{line}\n.YS"


def _spelling(action: argparse.Action) -> str:
    """One option or argument with its value, the long form where there are two."""
    value = roff.italic(str(action.metavar or action.dest))
    if not action.option_strings:
        return value
    name = roff.bold(action.option_strings[-1])
    if action.nargs == 0:
        return name
    return f"{name} [{value}]" if action.nargs == "?" else f"{name} {value}"


def _command(name: str, sub: argparse.ArgumentParser, common: list[argparse.Action]) -> Iterator[str]:
    yield roff.subsection(name)
    yield roff.paragraph(" ".join(filter(None, (sub.description, MORE.get(name)))))
    for action in _own(sub, common):
        yield _option(sub, action)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    words = parser._get_formatter()._expand_help(action) if action.help else ""
    short = [roff.bold(name) for name in action.option_strings[:-1]]
    return roff.item(", ".join([*short, _spelling(action)]), f"{words[:1].upper()}{words[1:]}.")


def _terms(title: str, terms: tuple[tuple[str, str], ...]) -> Iterator[str]:
    yield roff.section(title)
    yield from (roff.item(roff.bold(name), words) for name, words in terms)
