"""The daemon: one loop that waits for signals, requests and the next look."""

import faulthandler
import gc
import math
import select
import signal
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bpfkeeperd import kernel, service
from bpfkeeperd.capabilities import lacking_text
from bpfkeeperd.churn import IdChange
from bpfkeeperd.control import ControlServer, answer, control_path, read_request
from bpfkeeperd.entries import TlsEntry
from bpfkeeperd.errors import KeeperError, LibbpfError, ObjectError
from bpfkeeperd.fdstore import NAMES_MAX, FdStore
from bpfkeeperd.httpserver import MetricsServer
from bpfkeeperd.instruments import Instruments
from bpfkeeperd.journal import DriftLog, log_changes, log_healed, log_outcome
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.notify import Notifier, watchdog_seconds
from bpfkeeperd.service import MessageId, fields, log
from bpfkeeperd.state import Outcome, ReloadResult
from bpfkeeperd.statusline import status_line
from bpfkeeperd.steps import OnStep, Step, failpoint
from bpfkeeperd.textfile import check_textfile, write_textfile
from bpfkeeperd.trust import NOBODY_ELSE, Trust
from bpfkeeperd.watch import Watch

if TYPE_CHECKING:  # it brings ssl with it, which the daemon does without when nobody wants it
    from bpfkeeperd.tlsfiles import Certificates

LOOK_SECONDS = 30.0
"""How often the daemon looks for drift."""
TEXTFILE_SECONDS = 15.0
"""How often metrics are written to a file."""
STORE_AGAIN_SECONDS = 0.2
"""When the service manager is told again what it was too busy for."""
REQUEST_SECONDS = 5.0
"""How long a client of the control socket may take to send its request."""


class Daemon:
    """Serves one manifest until it is told to stop."""

    def __init__(
        self,
        manifest_file: str,
        state_directory: str,
        run_directory: str,
        textfile: str | None = None,
        trust: Trust = NOBODY_ELSE,
    ) -> None:
        if textfile:
            check_textfile(textfile)
        self._stopping = False
        self._told_alive = 0.0
        self._reload_asked = False
        self._force = False
        self._keep_pinned = False
        self._clients: dict[int, tuple[socket.socket, float]] = {}  # that said nothing yet
        self._waiting: list[socket.socket] = []  # for the next reload's outcome
        self._told: list[socket.socket] = []  # for that of the one under way
        self._id_changes: tuple[IdChange, ...] = ()
        self._drift = DriftLog()
        self._look_problem = ""
        self._heal_at: float | None = None
        self._watch: Watch | None = None
        self._watch_problem = ""
        self._metrics: MetricsServer | None = None
        self._metrics_problem = ""
        self._metrics_socket: socket.socket | None = None
        self._instruments: Instruments | None = None
        self._textfile = textfile
        self._textfile_at: float | None = None
        self._textfile_problem = ""
        self._store: FdStore | None = None
        self._store_at: float | None = None
        self._left_out = 0
        self._applied_at = 0.0
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._notifier = service.notifier()
        on_step = _alive_at_each(failpoint(), self._notifier)
        self._keeper = Keeper(manifest_file, state_directory, on_step, self._pause, trust)
        self._control_path = control_path(run_directory, manifest_file)

    def run(self) -> bool:
        """Loads, serves, and returns after SIGTERM or SIGINT; everything stays attached.

        False: the manifest names what its objects do not have, there was nothing to serve.
        """
        with ExitStack() as stack:
            stack.callback(self._notifier.close)
            stack.callback(self._keeper.close)
            faulthandler.enable()  # an expired watchdog ends this process with SIGABRT
            self._catch_signals()
            control = stack.enter_context(ControlServer(self._control_path))
            for note in self._keeper.notes:
                log.warning("%s", note)
            passed = service.passed_descriptors()
            self._metrics_socket = passed.metrics
            self._store = FdStore(self._notifier, passed.stored, service.store_room())
            for name, fds in passed.stored.items():
                self._keeper.stored.put(name, fds)
            held = kernel.effective_capabilities()
            if held is not None and (lacking := lacking_text(held)):
                log.warning("%s", lacking)
            _learn_features()
            outcome = self._reload()
            if outcome.result is ReloadResult.REJECTED:
                self._tell(outcome)
                return False
            self._instruments = stack.enter_context(Instruments(lambda: self._keeper.status))
            self._instruments.follow(self._keeper.manifest)
            self._watch = self._open_watch(stack)
            stack.callback(self._end_metrics)
            self._serve_metrics()
            gc.collect()
            gc.freeze()  # what is there now stays: no need to look at it again and again
            self._notifier.ready(self._status_line(outcome))
            self._tell(outcome)
            self._instruments.open_allocator_soon()
            self._write_textfile()
            self._loop(control)
            self._notifier.stopping()
            log.info("stopped; programs stay attached and maps stay pinned")
        return True

    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, lambda *_: self._ask_reload())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())

    def _pause(self, seconds: float) -> bool:
        """Waits in the middle of a reload; False at once when the daemon is told to stop.

        A signal wakes it up; requests wait for the end of the reload.
        """
        if time.monotonic() - self._told_alive > 1:
            self._told_alive = time.monotonic()
            self._notifier.long_work()
        # select(2) knows no descriptor above 1023, and the store can fill those
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if not self._stopping and poll.poll(math.ceil(seconds * 1000)):
            self._wake_reader.recv(4096)
        return not self._stopping

    def _ask_reload(self) -> None:
        self._reload_asked = True

    def _stop(self) -> None:
        self._stopping = True

    def _open_watch(self, stack: ExitStack) -> Watch | None:
        try:
            watch = Watch()
        except (KeeperError, OSError) as error:
            log.warning("drift is found by the timer only: %s", error)
            return None
        stack.callback(watch.close)
        self._follow(watch)
        return watch

    def _follow(self, watch: Watch) -> None:
        """Watches where changes matter now."""
        places = self._keeper.places
        problem = watch.follow(places, time.monotonic()) if places else ""
        if problem and problem != self._watch_problem:
            log.warning("%s", problem)
        self._watch_problem = problem

    def _serve_metrics(self) -> None:
        """Serves metrics if it can. Keeping maps is worth more than showing them: when the address
        is taken, or a certificate wrong, the daemon goes on without, and tries again with every
        look."""
        manifest = self._keeper.manifest
        inherited = self._metrics_socket
        if self._metrics and not self._metrics.alive:
            log.error("the metrics server ended by a fault of its own: it is started again")
            self._metrics.close()
            self._metrics = None
        if not (inherited or manifest.metrics_listen) or self._metrics or not self._instruments:
            return
        try:
            certificates = _certificates(manifest.metrics_tls)
            render = self._instruments.metrics.render
            listen = inherited.dup() if inherited else manifest.metrics_listen
            assert listen
            self._metrics = MetricsServer(listen, render, certificates)
        except (KeeperError, OSError) as error:
            if str(error) != self._metrics_problem:
                self._metrics_problem = str(error)
                log.error("no metrics are served: %s", error)
            return
        whose = " (socket of the service manager)" if self._metrics_socket else ""
        log.info("metrics are served at %s%s", self._metrics.url, whose)

    def _measure(self) -> None:
        """Has what is there now measured, and the file of metrics written soon."""
        if self._instruments:
            self._instruments.follow(self._keeper.manifest)
        if self._textfile_at is not None:
            self._textfile_at = min(self._textfile_at, time.monotonic() + 1)

    def _write_textfile(self) -> None:
        """A failure is logged once, and it is tried again."""
        if not self._textfile or not self._instruments:
            return
        self._textfile_at = time.monotonic() + TEXTFILE_SECONDS
        problem = ""
        try:
            write_textfile(self._textfile, self._instruments.metrics.render(process=False)[0])
        except KeeperError as error:
            problem = str(error)
            if problem != self._textfile_problem:
                log.error("%s", problem)
        self._textfile_problem = problem

    def _end_metrics(self) -> None:
        if self._metrics:
            self._metrics.close()
        if self._metrics_socket:
            self._metrics_socket.close()

    def _loop(self, control: ControlServer) -> None:
        watchdog = watchdog_seconds()
        tick = min(LOOK_SECONDS, watchdog / 2) if watchdog else LOOK_SECONDS
        next_look = time.monotonic() + LOOK_SECONDS
        while not self._stopping:
            if self._reload_asked:
                self._notifier.reloading()
                outcome = self._reload()
                self._notifier.ready(self._status_line(outcome))
                self._tell(outcome)
                self._measure()
                next_look = time.monotonic() + LOOK_SECONDS
            elif time.monotonic() >= next_look or self._is_look_due(time.monotonic()):
                self._look()
                self._serve_metrics()
                self._measure()
                next_look = time.monotonic() + LOOK_SECONDS
            if self._textfile_at is not None and time.monotonic() >= self._textfile_at:
                self._write_textfile()
            if self._store_at is not None and time.monotonic() >= self._store_at:
                self._store_kept()
            self._notifier.watchdog()
            wake_at = self._watch.wake_at if self._watch else None
            due_at = (next_look, self._heal_at, wake_at, self._textfile_at, self._store_at)
            dues = [due for due in due_at if due is not None]
            timeout = max(0.0, min(tick, min(dues) - time.monotonic()))
            if self._clients:
                timeout = min(timeout, REQUEST_SECONDS)
            if not self._reload_asked and not self._stopping:
                self._wait(control, timeout)

    def _wait(self, control: ControlServer, timeout_seconds: float) -> None:
        poll = select.poll()
        for fd in (self._wake_reader.fileno(), control.fileno(), *self._clients):
            poll.register(fd, select.POLLIN)
        if self._watch:
            self._watch.register(poll)
        for fd, _ in poll.poll(math.ceil(timeout_seconds * 1000)):
            if self._watch and self._watch.owns(fd):
                self._watch.notice(fd, time.monotonic())
            elif fd == self._wake_reader.fileno():
                self._wake_reader.recv(4096)
            elif fd == control.fileno():
                client = control.accept()
                if client:
                    deadline = time.monotonic() + REQUEST_SECONDS
                    self._clients[client.fileno()] = (client, deadline)
            else:
                self._serve(self._clients.pop(fd)[0])
        now = time.monotonic()
        for fd in [fd for fd, (_, deadline) in self._clients.items() if deadline < now]:
            self._clients.pop(fd)[0].close()

    def _serve(self, client: socket.socket) -> None:
        request = read_request(client)
        if not request or request.get("command") != "reload":
            client.close()
            return
        self._reload_asked = True
        self._force = self._force or request.get("force") is True
        self._keep_pinned = self._keep_pinned or request.get("keep_pinned") is True
        if request.get("wait") is True:
            self._waiting.append(client)
        else:
            client.close()

    def _reload(self) -> Outcome:
        """One reload for everybody who asked before it began."""
        manifest, force, keep_pinned = self._keeper.manifest, self._force, self._keep_pinned
        self._reload_asked, self._force, self._keep_pinned = False, False, False
        self._told, self._waiting = self._waiting, []
        outcome, self._id_changes = self._keeper.reload(force=force, keep_pinned=keep_pinned)
        self._store_kept()
        new = self._keeper.manifest is not manifest and not outcome.rolled_back
        if new or outcome.result is ReloadResult.OK:
            self._applied_at = time.time()
        self._look_problem = ""
        self._heal_at = None
        self._drift.reloaded(self._keeper.status)
        if self._watch:
            self._follow(self._watch)
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        """Answers those who wait, then writes the log, which takes longer."""
        for client in self._told:
            answer(client, outcome)
        self._told = []
        log_outcome(outcome, self._keeper.status)
        log_changes(self._id_changes)

    def _status_line(self, outcome: Outcome) -> str:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(self._applied_at))
        return status_line(outcome, self._keeper.status, at if self._applied_at else "")

    def _store_kept(self) -> None:
        """Has the service manager keep what is kept now; what it has no time for, a little later.
        Nothing is taken from it before a reload has told what is kept."""
        self._store_at = None
        if self._store is None or self._keeper.desired is None:
            return
        wanted = self._keeper.kept()
        if not self._store.follow(wanted, self._keeper.stored.names):
            self._store_at = time.monotonic() + STORE_AGAIN_SECONDS
        left_out = self._store.left_out(wanted)
        if left_out and left_out != self._left_out:
            log.warning(
                "the service manager keeps no descriptor of %d maps and links: there is no room for"
                " more (FileDescriptorStoreMax=, and %d at the most); their pins keep them",
                left_out,
                NAMES_MAX,
            )
        self._left_out = left_out

    def _is_look_due(self, now: float) -> bool:
        """Whether something was noticed, or is to be put right now that was left for later."""
        noticed = self._watch is not None and self._watch.due(now)
        return noticed or (self._heal_at is not None and now >= self._heal_at)

    def _look(self) -> None:
        """Puts right what drifted, and reports it, and what changed since the last look."""
        started = time.monotonic()
        self._heal_at = None
        try:
            healed = self._keeper.heal(started)
            self._store_kept()
        except (KeeperError, OSError) as error:
            if str(error) != self._look_problem:
                self._look_problem = str(error)
                log.error("%s", error, extra=fields(MessageId.DRIFT))
            if self._watch:
                self._follow(self._watch)
            return
        if self._look_problem:
            self._look_problem = ""
            log.info("the pin root can be read again")
        self._heal_at = healed.again_at
        if self._watch:
            now = time.monotonic()
            self._watch.looked(now, now - started, idle=not healed.actions)
            self._follow(self._watch)
        log_changes(healed.changes)
        log_healed(healed)
        self._drift.looked(self._keeper.status, healed.impossible)


def _learn_features() -> None:
    """As early as can be: later something may be short. What fails here is asked at the first load.

    Raises:
        LibbpfError: only another process can load anything.
    """
    try:
        kernel.learn_features()
    except LibbpfError:
        raise
    except ObjectError:
        pass  # the first load says it of what it is to load


def _certificates(tls: TlsEntry | None) -> "Certificates | None":
    if tls is None:
        return None
    from bpfkeeperd.tlsfiles import Certificates

    return Certificates(tls)


def _alive_at_each(on_step: OnStep, notifier: Notifier) -> OnStep:
    """Lets the service manager know during a long reload that something is going on.

    Objects are loaded in threads, and the loop waits for the next that is done: from the first load
    on it can take long until something can be said again.
    """
    last = time.monotonic()

    def alive(step: Step, subject: object) -> None:
        nonlocal last
        on_step(step, subject)
        now = time.monotonic()
        if step is Step.LOAD_OBJECT:
            notifier.load_begins()
        elif now - last > 1:
            last = now
            notifier.long_work()

    return alive
