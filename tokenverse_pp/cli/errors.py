"""A user's error is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import sys
from typing import Iterator

from tokenverse_pp.errors import UserError


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turn `UserError` into one line and exit code 2; Ctrl-C into exit code 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
