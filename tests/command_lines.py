"""Running `tokenverse-pp` within the test's process (pytest puts this folder on the path)."""

import inspect

from click.testing import CliRunner

from tokenverse_pp.cli.main import cli


def run(*args, group=cli):
    """The result of a command line: exit code, stdout and stderr."""
    # click 8.1 mixes stderr into stdout unless told not to, 8.2 has no such option.
    options = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**options).invoke(group, [str(arg) for arg in args])


def run_ok(*args, group=cli):
    """The result of a command line that succeeds."""
    result = run(*args, group=group)
    assert result.exit_code == 0, (args, result.output, result.stderr, result.exception)
    return result


def assert_refused(result, *said):
    """Exit code 2, and on stderr one line that says all of this."""
    assert result.exit_code == 2, (result.output, result.stderr, result.exception)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for part in said:
        assert str(part) in result.stderr, (part, result.stderr)
