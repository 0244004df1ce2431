"""What a transaction does when a part of its end fails."""

from bpfkeeperd.errors import KernelError
from bpfkeeperd.transaction import Transaction


def test_what_cannot_be_settled_is_told_and_keeps_nothing_else_from_it() -> None:
    settled: list[int] = []

    def fail() -> None:
        raise KernelError("remove /pin", 12)

    transaction = Transaction()
    for step in (lambda: settled.append(1), fail, lambda: settled.append(2)):
        transaction.on_success(step)

    assert transaction.settle() == ["cannot remove /pin: Cannot allocate memory (ENOMEM)"]
    assert settled == [1, 2] and transaction.undo() == []
