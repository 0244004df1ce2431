"""Iterators: read where they are pinned, swapped in place, and through a map of the manifest's."""

import threading

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.scenario import World

ITERATORS = ("tasks", "maps", "programs", "links")
MANIFEST = (
    "maps: {table: {on_mismatch: recreate}}\n"
    "objects:\n"
    "  one:\n"
    "    file: one.bpf.o\n"
    "    pin_maps: [table]\n"
    "    programs:\n"
    + "".join(f"      {name}: {{attach: auto}}\n" for name in ITERATORS)
    + "      elements: {attach: [{map: table}]}\n"
)


def read(world: World, program: str) -> bytes:
    """What an iterator writes, read from where its link is pinned."""
    (path,) = [path for path in world.link_ids() if path.split("/")[1] == program]
    return read_pin(f"{world.layout.links}/{path}")


def read_pin(path: str) -> bytes:
    with open(path, "rb") as reader:
        return reader.read()


def write_keys(world: World, *keys: int) -> None:
    found = kernel.pinned_map(str(world.pins / "table"))
    assert found
    with kernel.holding(found[0]):
        for key in keys:
            kernel.map_update(found[0], key.to_bytes(4, "little"), bytes(8))


def test_iterators_are_swapped_in_place_under_a_reader(world: World) -> None:
    """A reader meanwhile gets a whole answer every time, of the one version or the other."""
    files = [
        world.put("one", "iterators", VERSION=f'"{letter}"', ENTRIES=8).read_bytes()
        for letter in "AB"
    ]
    world.write(MANIFEST)
    wrong, reads, over = set[bytes](), [0], threading.Event()
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = world.link_ids()
        write_keys(world, 3)
        pins = [f"{world.layout.links}/{path}" for path in links if "elements" not in path]

        def go_on_reading() -> None:
            while not over.is_set():
                for pin in pins:
                    answer = read_pin(pin)
                    reads[0] += 1
                    if answer not in (b"A", b"B"):
                        wrong.add(answer)

        reader = threading.Thread(target=go_on_reading)
        reader.start()
        try:
            for turn in range(50):
                (world.directory / "one.bpf.o").write_bytes(files[turn % 2])
                assert world.reload(keeper).result is ReloadResult.OK
                assert read(world, "tasks") == b"AB"[turn % 2 : turn % 2 + 1]
        finally:
            over.set()
            reader.join()
        assert read(world, "elements") == b"3"
        assert {path: ids[0] for path, ids in world.link_ids().items()} == {
            path: ids[0] for path, ids in links.items()
        }, "the links are not those of the beginning"
    assert reads[0] > 50 and not wrong
    assert plan_now(world) == ()


def test_an_iterator_is_swapped_a_thousand_times(world: World) -> None:
    """Alone, so that there is time for it. Each read is answered by the version of the time."""
    files = [
        world.put("one", "iterators", VERSION=f'"{letter}"', ENTRIES=8).read_bytes()
        for letter in "AB"
    ]
    world.write("objects: {one: {file: one.bpf.o, programs: {links: {attach: auto}}}}\n")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = {path: ids[0] for path, ids in world.link_ids().items()}
        for turn in range(1000):
            (world.directory / "one.bpf.o").write_bytes(files[turn % 2])
            assert world.reload(keeper).result is ReloadResult.OK
            # Twice where the first of all links goes away while it is shown.
            assert set(read(world, "links")) == {b"AB"[turn % 2]}
        assert {path: ids[0] for path, ids in world.link_ids().items()} == links


def test_an_iterator_goes_over_to_a_map_that_is_made_anew(world: World) -> None:
    world.put("one", "iterators", VERSION='"A"', ENTRIES=8)
    world.write(MANIFEST)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK, "a map that is not there yet"
        write_keys(world, 1)
        assert read(world, "elements") == b"1"
        world.put("one", "iterators", VERSION='"A"', ENTRIES=16)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        write_keys(world, 7)
        assert read(world, "elements") == b"7"
        assert plan_now(world) == ()
