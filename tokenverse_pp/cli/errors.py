"""A user's error is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import sys
from typing import Iterator

from tokenverse_pp.cli.groups import EXIT_CODE, error_line
from tokenverse_pp.errors import UserError


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turn what the user can mend into one line and exit code 2; Ctrl-C into exit code 130."""
    try:
        yield
    except (UserError, OSError) as error:
        line = error_line(error)
        if line is None:
            raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
