"""Near misses. Pure."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``did you mean X?`` for a near miss; else what there is to choose from; empty for nothing."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    if not known:
        return ""
    shown = ", ".join(known[:8])
    return f"there is {shown}" + (", …" if len(known) > 8 else "")
