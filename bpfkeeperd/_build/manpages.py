"""The manual pages, made of the tables that the program goes by: `manpages.py DIRECTORY`.

bpfkeeperd(8) of the command line's parser, bpfkeeperd.yaml(5) of the table of fields. It takes
nothing but Python, with the checkout in its path.
"""

import sys
from pathlib import Path

import commandpage
import manifestpage

PAGES = {"bpfkeeperd.8": commandpage.page, "bpfkeeperd.yaml.5": manifestpage.page}


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="ascii")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: manpages.py DIRECTORY")
    main(Path(sys.argv[1]))
