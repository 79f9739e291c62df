"""`UserError`, which command lines report in one line with exit code 2."""

from __future__ import annotations

import contextlib
import re
from typing import Iterator

# Control characters, and halves of surrogate pairs, which no terminal or file accepts.
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
# What must not reach a terminal from a file: these except line ends, and marks that change the writing direction.
_UNPRINTABLE = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\u202a-\\u202e\\u2066-\\u2069]")


class UserError(Exception):
    """An error that the user can fix: names the file, cut id or option, and says what was expected.

    Messages may quote file contents. Control characters, which could manipulate a terminal, are escaped:

    >>> str(UserError("cut \\x1b[2J: no such file"))
    'cut \\\\x1b[2J: no such file'
    """

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return a text for a terminal, with control characters other than line ends escaped.

    >>> printable("a\\x07b\\u202ec") == "a" + r"\\x07" + "b" + r"\\u202e" + "c"
    True
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of an error, or its type if it is empty, in one line, cut after ``limit`` characters.

    >>> one_line(OSError("libcudart.so.11.0: cannot open\\n  shared object file")), one_line(RuntimeError())
    ('libcudart.so.11.0: cannot open shared object file', 'RuntimeError')
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + ".."


@contextlib.contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Import an optional package in the block; raise UserError if it is missing or broken.

    Args:
        what: the first words of the message, such as ``--plot needs matplotlib``.
        extra: of tokenverse_pp, which installs the package.
    """
    try:
        yield
    except Exception as error:  # a broken installation may raise other errors than ImportError
        raise UserError(f"{what} ({one_line(error)}): pip install 'tokenverse_pp[{extra}]'") from None
