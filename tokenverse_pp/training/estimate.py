"""Estimate how long a run takes, from its configuration and a measured rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError

SECONDS_PER_HOUR = 3600.0
# Seconds of audio per second in training steps of XLSR-53's size, 16 x 15 s, bf16, one H200 (docs/performance.md).
MEASURED_CARD = "h200"
MEASURED_RATE = 2122.0
COMPILED_RATE = 2588.0  # with training.compile
# Milliseconds of these steps. Smaller batches were not measured, and kernels may not start faster for them: they are
# assumed to take as long on any card, so that estimates err on the long side.
LEAST_MS = 113.0
COMPILED_LEAST_MS = 92.7
# Ratio of counted operations of a step with and without gradient checkpointing (benchmarks/results/scaling.md).
RECOMPUTING = 129.7 / 98.7
# Dense bf16 rates in TFLOP/s from NVIDIA's data sheets (V100: fp16). The rate of other cards is assumed to be
# proportional; a card whose memory does not hold a batch is slower.
PEAK: Dict[str, float] = {
    "h200": 989.0,
    "h100": 989.0,
    "a100": 312.0,
    "l40s": 362.0,
    "rtx4090": 165.0,
    "rtx3090": 71.0,
    "v100": 125.0,
}


@dataclass(frozen=True)
class Estimate:
    """The time of a run's steps, without validation, checkpoints, and waiting for data or the network.

    Attributes:
        audio_hours: audio of the batches, including padding; repeated cuts count each time.
        rate: seconds of audio per second on one GPU.
        basis: source of the rate, for the user.
    """

    steps: int
    audio_hours: float
    rate: float
    gpus: int
    basis: str

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all GPUs."""
        return self.audio_hours / self.rate

    @property
    def hours(self) -> float:
        """Wall-clock hours."""
        return self.gpu_hours / self.gpus

    def describe(self) -> str:
        """A line for the terminal, with units."""
        return (
            f"{self.steps} steps use {self.audio_hours:.0f} h of audio; at {self.rate:.0f} s of audio per second and "
            f"GPU ({self.basis}) they take {self.hours:.1f} h on {self.gpus} GPU{'s' * (self.gpus > 1)}, "
            f"{self.gpu_hours:.1f} GPU-hours, without validation, checkpoints and waiting"
        )


def estimate(config: Config, gpus: int, card: str = MEASURED_CARD, rate: Optional[float] = None) -> Estimate:
    """Estimate the time of a run of `training.max_steps` steps with full batches.

    Args:
        card: kind of GPU, a key of `PEAK`; for a fully trained encoder of XLSR-53's size.
        rate: seconds of audio per second and GPU, measured with this configuration, instead of ``card``: ``speed`` in
            log.jsonl divided by the number of GPUs.

    Raises:
        UserError: unknown card.
    """
    steps = config.training.max_steps
    seconds = float(steps) * config.training.accumulate * gpus * config.data.max_duration
    basis = "as given"
    if rate is None:
        if card not in PEAK:
            raise UserError(f"--card {card}: expected one of {', '.join(PEAK)}, or --rate as measured there")
        rate = COMPILED_RATE if config.training.compile else MEASURED_RATE
        basis = "XLSR-53's size on one H200, measured"
        if card != MEASURED_CARD:
            rate *= PEAK[card] / PEAK[MEASURED_CARD]
            basis += f"; {card} by {PEAK[card]:g} of {PEAK[MEASURED_CARD]:g} TFLOP/s"
        if config.model.encoder.gradient_checkpointing:
            rate /= RECOMPUTING
            basis += f"; 1/{RECOMPUTING:.2f} with gradient checkpointing"
        least = COMPILED_LEAST_MS if config.training.compile else LEAST_MS
        if 1000 * config.data.max_duration / rate < least:
            rate = 1000 * config.data.max_duration / least
            basis += f"; at least {least:g} ms per batch, so larger batches would be faster"
    return Estimate(steps, seconds / SECONDS_PER_HOUR, rate, gpus, basis)
