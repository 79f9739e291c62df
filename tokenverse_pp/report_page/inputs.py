"""What decode.py wrote beside its hypotheses, for a page that is made later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import PathLike, is_finite, json_of


def read_beside(hyps: PathLike) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """The failures, and options and speed, of the run that wrote ``hyps``; empty where there are no such files.

    Raises:
        UserError: naming a file that is not as decode.py writes it.
    """
    folder = Path(hyps).parent
    path = folder / "failures.jsonl"
    failures = [_object(path, line, {"id", "reason"}) for line in _lines(path)]
    path = folder / "scores.json"
    scores = _object(path, path.read_text(encoding="utf-8-sig"), set()) if path.is_file() else {}
    if isinstance(scores.get("speed"), dict) and not _is_speed(scores["speed"]):
        raise UserError(f"{path}: field 'speed': expected numbers, as decode.py writes them")
    return failures, {key: scores[key] for key in ("options", "speed") if isinstance(scores.get(key), dict)}


def _is_speed(speed: Dict[str, Any]) -> bool:
    """Whether the numbers that the page shows are numbers."""
    ranks = speed.get("ranks", [])
    parts = [speed, *ranks] if isinstance(ranks, list) and all(isinstance(rank, dict) for rank in ranks) else []
    needed = ("audio_seconds", "wall_seconds", "rtf")
    return bool(parts) and all(
        is_finite(part.get(name, 0 if part is speed else None)) for part in parts for name in needed
    )


def _lines(path: Path) -> List[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def _object(path: Path, content: str, keys: set) -> Dict[str, Any]:
    found = json_of(content, str(path))
    if not isinstance(found, dict) or not keys <= set(found):
        with_keys = f" with {' and '.join(sorted(keys))}" if keys else ""
        raise UserError(f"{path}: expected an object{with_keys}, as decode.py writes it")
    return found
