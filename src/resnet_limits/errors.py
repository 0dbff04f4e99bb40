"""The one exception that a user may see, and how it is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave us.

    Its text names the file, the key and the remedy. The command line prints it alone, without
    a traceback.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` if a known name is close, and the list of known names.

    Parameters
    ----------
    word
        What the user wrote.
    known
        What could have been written.
    """
    names = sorted(str(name) for name in known)
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."


def require_known(word: str, known: Iterable[str], what: str) -> None:
    """Raise `UserError` unless ``word`` is one of ``known``; ``what`` opens the message."""
    names = list(known)
    if word not in names:
        raise UserError(f"{what} {word!r} does not exist; {suggest(word, names)}")
