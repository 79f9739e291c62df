"""What hotwords bring and cost, on cuts with stored features.

    OMP_NUM_THREADS=1 python benchmarks/hotwords.py --model MODEL --cuts TEST --train TRAIN --json hotwords.json

The phrases are the rare words of the test cuts: of five letters or more, and at most once in the training texts. A list
that somebody gives holds mostly words that are not spoken, so they are also mixed with other words of the training
texts up to ``--most`` phrases. A JSON record for each list and score: phrases, score, wer, rare words in the reference,
how many of them were found, how many were written that were not spoken, and seconds to compile the list and to search.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from lhotse.cut import Cut
from torch import Tensor

from tokenverse_pp.base.files import write_text
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.dataset import collate, load_inputs
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.language_models import bonus_for
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.metrics.error_rates import error_rates
from tokenverse_pp.models.bundle import ModelBundle, load_model
from tokenverse_pp.tasks import transcript_of
from tokenverse_pp.tasks.transcript import is_task_token

BATCH = 16
LETTERS = 5  # of a rare word
Words = Sequence[str]


class Encoded(NamedTuple):
    """A batch behind the encoder."""

    references: List[Words]
    out: Tensor
    lens: Tensor


@torch.no_grad()
def encode(loaded: ModelBundle, cuts: Sequence[Cut]) -> Iterator[Encoded]:
    """Run the encoder once, for all searches."""
    active = torch.tensor(loaded.tasks.mask(loaded.tasks.names), dtype=torch.float32)
    ordered = sorted(cuts, key=lambda cut: cut.duration)
    for start in range(0, len(ordered), BATCH):
        group = ordered[start : start + BATCH]
        inputs, lens = collate([load_inputs(cut, stored_features=True) for cut in group])
        out, lens = loaded.model.encode(inputs, lens, active.expand(len(group), -1), True)
        yield Encoded([transcript_of(cut, loaded.tasks).words for cut in group], out.float(), lens)


def word_lists(loaded: ModelBundle, test: Sequence[Cut], train: Path, most: int) -> Tuple[List[str], List[str]]:
    """Rare words of the test cuts; and those among other words."""
    spoken = {word for cut in test for word in transcript_of(cut, loaded.tasks).words}
    known = Counter(word for cut in read_cuts(train) for word in transcript_of(cut, loaded.tasks).words)
    rare = sorted(word for word in spoken if known[word] <= 1 and len(word) >= LETTERS)
    others = sorted(word for word in known if word not in spoken and len(word) >= LETTERS)
    random.Random(0).shuffle(others)
    return rare, rare + others[: most - len(rare)]


def measure(
    loaded: ModelBundle, batches: Sequence[Encoded], rare: Words, phrases: Words, score: Optional[float]
) -> Dict[str, Any]:
    """One record."""
    options = SearchOptions()
    if score is not None:
        options = SearchOptions(hotwords=tuple(phrases), hotword_score=score)
    rules = constraints_for(loaded.tasks, loaded.tasks.names, loaded.tokenizer)
    started = time.monotonic()
    bonus = bonus_for(options, loaded.tokenizer)
    compiled = time.monotonic()
    pairs: List[Tuple[Words, Words]] = []
    for references, out, lens in batches:
        found = search_frames(loaded.model.predictor, loaded.model.joiner, out, lens, options, rules, bonus)
        texts = [loaded.tokenizer.decode(best[0].tokens).split() for best in found]
        pairs += zip(references, [[word for word in text if not is_task_token(word)] for text in texts])
    wanted = set(rare)
    counts = [(Counter(w for w in ref if w in wanted), Counter(w for w in hyp if w in wanted)) for ref, hyp in pairs]
    return {
        "phrases": 0 if score is None else len(phrases),
        "score": score,
        "wer": error_rates(pairs)["wer"],
        "rare": sum(sum(ref.values()) for ref, _ in counts),
        "rare_found": sum(sum((ref & hyp).values()) for ref, hyp in counts),
        "rare_false": sum(sum((hyp - ref).values()) for ref, hyp in counts),
        "compile_seconds": round(compiled - started, 3),
        "search_seconds": round(time.monotonic() - compiled, 3),
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--encoder", default="", help="where the pretrained encoder is")
    parser.add_argument("--cuts", type=Path, required=True, help="with stored features")
    parser.add_argument("--train", type=Path, required=True, help="cuts of the training texts")
    parser.add_argument("--scores", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0])
    parser.add_argument("--most", type=int, default=10000, help="phrases in the long list")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(args.model, args.encoder)
    cuts = list(read_cuts(args.cuts))
    rare, among_others = word_lists(loaded, cuts, args.train, args.most)
    batches = list(encode(loaded, cuts))
    measure(loaded, batches[:1], rare, [], None)  # warms up: the first record is what the others are compared with
    records = [measure(loaded, batches, rare, [], None)]
    for phrases in (rare, among_others):
        records += [measure(loaded, batches, rare, phrases, score) for score in args.scores]
    lines = [json.dumps(record) for record in records]
    write_text(args.json, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
