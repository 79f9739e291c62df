"""Headless Chromium for the tests of pages (marker ``browser``)."""

import contextlib
import os
import shutil

import pytest

# Without these Chromium looks for its maker's hosts at every start.
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required""".split()


@contextlib.contextmanager
def chromium(profile, *flags):
    """A selenium driver with a new profile in the folder ``profile``; skips the test where there is no Chromium."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        if os.environ.get("CI"):
            pytest.fail("no chromium or chromedriver: run .ci/browser.sh")
        pytest.skip("no chromium or chromedriver (apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={profile}", *flags]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield page
    finally:
        page.quit()
