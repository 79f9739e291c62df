#!/usr/bin/env python3
"""Take the picture of the report page in README: docs/assets/report.png, of the toy's test set (recipes/toy/README.md).

.ci/browser.sh
.venv/bin/python .ci/report_picture.py exp/toy/decode/report.html
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "assets" / "report.png"
SIZE = (1100, 1010)
MOST_BYTES = 150_000


def main(report: str) -> None:
    """Open the page, scroll to the utterances, and save what is seen."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import chromium

    with tempfile.TemporaryDirectory() as profile, chromium(profile, "--hide-scrollbars") as page:
        page.set_window_size(*SIZE)
        page.get(Path(report).resolve().as_uri())
        heading = page.find_element("xpath", "//h2[contains(., 'Utterances with most errors')]")
        page.execute_script("scrollTo(0, arguments[0].getBoundingClientRect().top - 115)", heading)
        page.save_screenshot(str(PICTURE))
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {size} bytes")
    if size > MOST_BYTES:
        sys.exit(f"expected at most {MOST_BYTES} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
