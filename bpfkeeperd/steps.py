"""Every change to the kernel goes through a named step, so that a test can stop at each."""

import os
import signal
from collections.abc import Callable
from enum import StrEnum

FAILPOINT_VARIABLE = "BPFKEEPERD_FAILPOINT"


class Step(StrEnum):
    """Named just before it is done."""

    SWEEP_STAGING = "sweep_staging"
    RESTORE_MAP = "restore_map"
    RESTORE_LINK = "restore_link"
    RESTORE_STUB = "restore_stub"
    RESTORE_PROGRAM = "restore_program"
    CREATE_MAP = "create_map"
    LOAD_OBJECT = "load_object"
    FILL_MAP = "fill_map"
    PIN_MAP = "pin_map"
    STAGE_MAP = "stage_map"
    SET_RIGHTS = "set_rights"
    PIN_PROGRAMS = "pin_programs"
    STAGE_PROGRAMS = "stage_programs"
    CARRY_DATA = "carry_data"
    MAKE_STUB = "make_stub"
    MOVE_STUB = "move_stub"
    RECORD = "record"
    ATTACH = "attach"
    ADOPT = "adopt"
    TAKE_OVER = "take_over"
    SWAP = "swap"
    WRITE_ENTRIES = "write_entries"
    RENAME_MAP = "rename_map"
    COMMIT_MAP = "commit_map"
    COMMIT_PROGRAMS = "commit_programs"
    COMMIT_LINK = "commit_link"
    COUNT_RUNS = "count_runs"
    TRIAL = "trial"
    DETACH = "detach"
    REMOVE_PROGRAMS = "remove_programs"
    REMOVE_ARRAY = "remove_array"
    REMOVE_STUB = "remove_stub"
    WRITE_STATE = "write_state"


OnStep = Callable[[Step, object], None]
"""Called with a step and what it is about to be done to, which ``str()`` names."""


def no_failpoint(step: Step, subject: object) -> None:
    """Goes on."""


def failpoint() -> OnStep:
    """What the environment asks for: ``BPFKEEPERD_FAILPOINT=swap:3`` kills this process with
    SIGKILL just before its third swap. Without the variable nothing is ever stopped."""
    name, _, count = os.environ.get(FAILPOINT_VARIABLE, "").partition(":")
    if not name:
        return no_failpoint
    wanted, left = Step(name), int(count or 1)

    def on_step(step: Step, subject: object) -> None:
        nonlocal left
        if step is wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return on_step
