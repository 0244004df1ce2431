"""Objects whose struct_ops maps are in SEC(".struct_ops.link"), for a libbpf that knows only
".struct_ops". Pure.

The longer name says that the map is registered through a link, which is what ``register`` in the
manifest asks for: there is nothing else to tell the two apart.
"""

from bpfkeeperd.elfimage import ElfImage, has_section
from bpfkeeperd.errors import ObjectError

LINK_SECTION, SECTION = ".struct_ops.link", ".struct_ops"


def with_known_section(data: bytes) -> bytes:
    """The object with the name that every libbpf knows; the same bytes where it has it already.

    Raises:
        ObjectError: it has maps in both sections.
    """
    if not has_section(data, (f"{LINK_SECTION}\0".encode(),)):
        return data
    image = ElfImage(data)
    names = [image.section_name(index) for index in range(len(image.sections))]
    if SECTION in names:
        raise ObjectError(
            f'the object has SEC("{SECTION}") and SEC("{LINK_SECTION}"): move all maps to one'
        )
    changed = bytearray(data)
    for index, section in enumerate(image.sections):
        # The name is in the table of section names, perhaps as the end of another, and in the BTF.
        if names[index] in (".BTF", ".strtab", ".shstrtab"):
            end = section.offset + section.size
            part = data[section.offset : end]
            cut = part.replace(f"{LINK_SECTION}\0".encode(), f"{SECTION}\0link\0".encode())
            changed[section.offset : end] = cut
    return bytes(changed)
