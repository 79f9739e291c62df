"""See that scores are as good as they should be: check_scores.py scores.json 'wer.all.wer<0.1' 'scd.text.f1>0.9' .."""

from __future__ import annotations

import json
import re
import sys
from functools import reduce


def main() -> None:
    """Print every score beside its bound; exit code 1 if any is on the wrong side."""
    with open(sys.argv[1], encoding="utf-8") as file:
        scores = json.load(file)
    failed = 0
    for bound in sys.argv[2:]:
        name, sign, limit = re.split(r"([<>])", bound)
        value = reduce(lambda tree, key: tree[key], name.split("."), scores)
        good = value < float(limit) if sign == "<" else value > float(limit)
        failed += not good
        print(f"{name} = {value:.4f}, wanted {sign} {limit}: {'good' if good else 'NOT REACHED'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
