"""The one exception that command lines turn into a single line and exit code 2."""


class UserError(Exception):
    """Something the user can mend: names the file, cut id or option, and says what was expected."""
