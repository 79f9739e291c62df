"""Cuts -> hypotheses: batches, several processes, going on after a crash, and cuts that have to be refused."""

from tokenverse_pp.decoding.batches import Decoded, Decoder, decode, plan_batches
from tokenverse_pp.decoding.options import DecodeOptions, choose_tasks
from tokenverse_pp.decoding.run import Outcome, check_ids, decode_all

__all__ = [
    "DecodeOptions",
    "Decoded",
    "Decoder",
    "Outcome",
    "check_ids",
    "choose_tasks",
    "decode",
    "decode_all",
    "plan_batches",
]
