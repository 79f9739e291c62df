"""What a run writes down: log.jsonl for programs, tensorboard for eyes, and curves.png at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends records to ``log.jsonl`` and scalars to tensorboard. Only the first rank makes one."""

    def __init__(self, exp_dir: Path, step: int):
        self.path = exp_dir / "log.jsonl"
        # A resumed run starts at its checkpoint: later records of the killed run would come twice.
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step)

    def write(self, kind: str, step: int, values: Dict[str, float]) -> None:
        """One record of numbers: ``kind`` is train or valid."""
        self.note(kind, step, values)
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record that no curve is drawn of: ``kind`` is drawn (`meter.Meter.drawn`)."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.board.close()


def read_log(path: Path) -> List[Dict]:
    """The records of a ``log.jsonl``; a last line cut off by a kill is passed over."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


def plot_curves(exp_dir: Path) -> Path | None:
    """Draw losses and valid WER over steps into ``curves.png``; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(exp_dir / "log.jsonl")
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for axis, name in zip(axes, ("loss", "wer")):
        for kind in ("train", "valid"):
            points = [
                (r["step"], r["pruned" if kind == "train" and name == "loss" else name])
                for r in records
                if r["kind"] == kind and (name in r)
            ]
            if points:
                axis.plot(*zip(*points), label=kind)
        axis.set_xlabel("step")
        axis.set_title("pruned loss, nats a frame" if name == "loss" else "WER, greedy, valid")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.tight_layout()
    figure.savefig(exp_dir / "curves.png", dpi=100)
    pyplot.close(figure)
    return exp_dir / "curves.png"
