"""From the command line to a command to an exit code; the only place that prints errors."""

import argparse
import errno
import os
import resource
import sys
from collections.abc import Callable, Sequence

from bpfkeeperd import __version__, commands
from bpfkeeperd.accounts import user_id
from bpfkeeperd.errors import KeeperError, ManifestError
from bpfkeeperd.trust import Trust

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DEFAULT_CONFIG = "/etc/bpfkeeperd/bpfkeeperd.yaml"

Command = Callable[[argparse.Namespace], int]


def command_line() -> argparse.ArgumentParser:
    """What is understood on the command line; the manual page is made of it, too."""
    parser = argparse.ArgumentParser(
        prog="bpfkeeperd",
        description="Keeps pinned eBPF maps alive, under the same ID and with their contents,"
        " while the programs around them are reloaded.",
        epilog="Exit codes: 0 fine, 1 failed, 2 the manifest is wrong (78 from run, 1 from reload),"
        " 3 plan --exit-code found something to do. The manual: bpfkeeperd(8), bpfkeeperd.yaml(5).",
    )
    parser.add_argument("--version", action="version", version=f"bpfkeeperd {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    text = "manifest; default: %(default)s"
    common.add_argument("-c", "--config", default=DEFAULT_CONFIG, metavar="FILE", help=text)
    common.add_argument("--state-dir", metavar="DIR", help="default: /var/lib/bpfkeeperd")
    common.add_argument("--run-dir", metavar="DIR", help="default: /run/bpfkeeperd")
    text = "take files, too, that this user can change; repeatable"
    common.add_argument(
        "--trust", action="append", default=[], type=_user, metavar="USER", help=text
    )
    common.add_argument("-v", "--verbose", action="store_true", help="verifier logs in full")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str, *options: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        if "json" in options:
            sub.add_argument("--json", action="store_true", help="for scripts")
        if "force" in options:
            sub.add_argument(
                "--force", action="store_true", help="load every object again, changed or not"
            )
        return sub

    text = "Load, pin and attach, then keep it so: the daemon, in front."
    _add_textfile(command("run", commands.run, text))
    command("check", commands.check, "Check a manifest and its objects; changes nothing.", "json")
    text = "Show what a reload would do; changes nothing."
    _add_plan(command("plan", commands.plan, text, "json", "force"))
    command("apply", commands.apply, "Do it once, without a daemon.", "json", "force")
    text = "Have the daemon reload its manifest."
    _add_reload(command("reload", commands.reload, text, "json", "force"))
    command("status", commands.status, "Show maps, attachments and drift as they are.", "json")
    _add_maps(command("maps", commands.maps, "Show the kept maps and how full they are."))
    text = "Print what Prometheus is shown, daemon or not."
    _add_textfile(command("metrics", commands.metrics, text))
    sub = command("dump", commands.dump, "Show the contents of a map, whoever made it.", "json")
    sub.add_argument("map", metavar="MAP", help="a kept map, the path of a pin, or id:NUMBER")
    sub.add_argument("--limit", type=_count, metavar="N", help="show no more than N entries")
    _add_wait(command("wait", commands.wait, "Wait until a map's name has another ID; print it."))
    sub = command(
        "unload", commands.unload, "Detach and unload everything; maps stay, but with --maps."
    )
    sub.add_argument(
        "--maps", action="store_true", help="also unpin the maps made here: CONTENTS ARE LOST"
    )
    text = "Show what the daemon needs of this machine, and what it lacks; changes nothing."
    command("doctor", commands.doctor, text, "json")
    command("schema", commands.schema, "Print the manifest's JSON Schema, for editors.")
    _add_explain(subparsers)
    return parser


def _user(text: str) -> int:
    found = user_id(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no user {text!r}")
    return found


def _add_textfile(sub: argparse.ArgumentParser) -> None:
    text = "write metrics there, for node_exporter: its name ends in .prom"
    sub.add_argument("--textfile", metavar="FILE", help=text)


def _add_plan(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--verify", action="store_true", help="have the verifier judge every program to be loaded"
    )
    sub.add_argument(
        "--exit-code", action="store_true", help="exit with 3 when there is something to do"
    )


def _add_reload(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--wait", action="store_true", help="wait, and say what came of it")
    sub.add_argument(
        "--keep-pinned",
        action="store_true",
        help="where the service manager kept another map than is pinned, the pinned one is kept:"
        " CONTENTS OF THE OTHER ARE LOST",
    )
    sub.add_argument("-q", "--quiet", action="store_true", help="say nothing; the exit code tells")
    sub.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="of --wait; default: 600"
    )


def _add_wait(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("map", metavar="MAP", help="a kept map, or the path of a pin")
    sub.add_argument("--id", type=_map_id, metavar="N", help="the ID known; default: that of now")
    sub.add_argument("--timeout", type=float, metavar="SECONDS", help="then fail; default: never")


def _add_maps(sub: argparse.ArgumentParser) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="for scripts")
    group.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=1.0,
        metavar="SECONDS",
        help="show them again every second, or so often, until q",
    )


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.1 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"not a number of seconds from 0.1 to a day: {text!r}")
    return number


def _map_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"not a map ID: {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"not a number of entries: {text!r}")
    return int(text)


def _add_explain(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "Explain a map type, or an errno of the kernel."
    topics = subparsers.add_parser("explain", help=text, description=text).add_subparsers(
        dest="topic", required=True, metavar="TOPIC"
    )
    text = "What a map type is for and what its creation wants; all types without a name."
    sub = topics.add_parser("map-type", help=text, description=text)
    sub.add_argument("name", nargs="?", metavar="NAME", help="such as lru_hash")
    sub.set_defaults(run=commands.explain_map_type)
    text = "What an errno means for a map, program, link or pin."
    sub = topics.add_parser("errno", help=text, description=text)
    sub.add_argument("errno", metavar="ERRNO", help="such as EINVAL or 524")
    sub.add_argument("place", nargs="?", metavar="PLACE", help="such as map-create or prog-load")
    sub.set_defaults(run=commands.explain_errno)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout:  # None when it was closed before
                sys.stdout.flush()  # at the interpreter's end nobody could catch what this raises
    except BrokenPipeError:  # the reader of our output went away
        _end_output()
        return commands.FAILED
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _end_output()
        print(f"bpfkeeperd: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return commands.FAILED


def _end_output() -> None:
    """What is still to be written goes nowhere: at the interpreter's end it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    options = command_line().parse_args(arguments)
    _raise_descriptor_limit()
    if "trust" in options:
        options.trust = Trust(frozenset(options.trust))
    try:
        run: Command = options.run
        return run(options)
    except ManifestError as error:
        print(error, file=sys.stderr)
        return commands.BAD_MANIFEST
    except KeeperError as error:
        print(f"bpfkeeperd: {error}", file=sys.stderr)
        return commands.FAILED
    except KeyboardInterrupt:
        return 130


def _raise_descriptor_limit() -> None:
    """A descriptor for every kept map and link: 1024, the usual soft limit, is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
