"""The one exception that command lines turn into a single line and exit code 2."""


class UserError(Exception):
    """Something the user can mend: names the file, cut id or option, and says what was expected."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an error says, or its type where it says nothing, in one line of at most ``limit`` characters.

    >>> one_line(OSError("libcudart.so.11.0: cannot open\\n  shared object file")), one_line(RuntimeError())
    ('libcudart.so.11.0: cannot open shared object file', 'RuntimeError')
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + ".."
