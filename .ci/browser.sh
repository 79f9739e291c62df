#!/bin/sh
# Chromium and ChromeDriver, for the tests of pages (pytest -m browser): .ci/browser.sh
# As root on Debian or Ubuntu this installs what is missing, otherwise it says what to install.
set -eu
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium chromium-driver" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null
else
    echo "error: missing Debian packages; run: apt-get install chromium chromium-driver" >&2
    exit 2
fi
