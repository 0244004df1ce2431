"""Programs and maps by their IDs. With CAP_SYS_ADMIN the kernel opens any; without it the keeper's
own are found by their pins."""

import errno
from collections.abc import Mapping

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError
from bpfkeeperd.layout import Layout
from bpfkeeperd.observed import ObservedMap


def program_by_id(layout: Layout, program_id: int) -> int | None:
    """A descriptor of a program; None when there is none (any more).

    Raises:
        KernelError: EPERM of one that is not the keeper's, without CAP_SYS_ADMIN.
    """
    try:
        return kernel.program_by_id(program_id)
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        for pin in kernel.scan(layout.objects, depth=3, kind=kernel.PinKind.PROGRAM):
            if pin.id == program_id and not pin.error:
                path = f"{layout.objects}/{'/'.join(pin.path)}"
                return kernel.pinned(path, kernel.PinKind.PROGRAM)
        raise


def map_by_id(layout: Layout, maps: Mapping[str, ObservedMap], map_id: int) -> int | None:
    """A descriptor of a map, which is one of the kept ``maps`` if it is pinned; None when there is
    none (any more).

    Raises:
        KernelError: EPERM of one that is not pinned there, without CAP_SYS_ADMIN.
    """
    try:
        return kernel.map_by_id(map_id)
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        for name, found in maps.items():
            if found.pinned and found.pinned.id == map_id:
                opened = kernel.pinned_map(layout.map(found.source or name))
                return opened[0] if opened else None
        raise
