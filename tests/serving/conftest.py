"""Runs tests that are coroutines. Serving needs packages that the oldest supported stack does without."""

import asyncio
import inspect
from importlib.util import find_spec

import pytest

if any(find_spec(name) is None for name in ("aiohttp", "prometheus_client", "websockets")):
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
