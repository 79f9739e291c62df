"""Splits clips into train, dev and test so that no sentence, and no near-duplicate of one, is in two sets.

Two texts of one language are *near-duplicates* when any of these holds for their content words, which are the words
of the normalised text without numbers (`ignore`) and without lone letters ("the letter x", "press one for .."):

* the same set of content words, in whatever order;
* word sets with a Jaccard overlap of at least 0.8;
* sets of character trigrams with a Jaccard overlap of at least 0.7 (spelling variants and inflections).

Clips without a `group` are kept together with all their near-duplicates, transitively. Clips with a `group` (a game
level) follow their group; after that, a clip that has a near-duplicate in a set that counts more (test over dev over
train) is left out of the lesser one; so is a clip with exactly the text of one in another language ("un castor").
Closed-class prompts (`Clip.closed`) take no part: they are words, not sentences.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations
from typing import AbstractSet, Callable, Dict, FrozenSet, Hashable, Iterable, List, Sequence, Tuple

import numpy as np

from corpus.clips import Clip

SPLITS = ("train", "dev", "test")
WORD_OVERLAP = 0.8
TRIGRAM_OVERLAP = 0.7


def content_words(text: str, ignore: AbstractSet[str]) -> Tuple[str, ...]:
    """Sorted content words; all words if none would be left."""
    words = text.split()
    return tuple(sorted(word for word in words if len(word) > 1 and word not in ignore)) or tuple(sorted(words))


def near_duplicates(texts: Sequence[str], ignore: AbstractSet[str] = frozenset()) -> List[Tuple[int, int]]:
    """Pairs `(i, j)`, i < j, of near-duplicate texts (see the module's docstring); all texts are of one language."""
    contents = [content_words(text, ignore) for text in texts]
    pairs = set(_overlapping([frozenset(words) for words in contents], WORD_OVERLAP))
    pairs.update(_overlapping([_trigrams(" ".join(words)) for words in contents], TRIGRAM_OVERLAP))
    return sorted(pairs)


def _trigrams(text: str) -> FrozenSet[str]:
    padded = f"  {text} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def _overlapping(sets: Sequence[FrozenSet[str]], threshold: float, block: int = 1024) -> Iterable[Tuple[int, int]]:
    """Pairs of sets whose Jaccard overlap reaches `threshold`; intersections are counted by one matrix product per
    block."""
    if not sets:
        return
    index = {item: i for i, item in enumerate(sorted(set().union(*sets)))}
    member = np.zeros((len(sets), len(index)), dtype=np.float32)
    for row, items in enumerate(sets):
        member[row, [index[item] for item in items]] = 1.0
    sizes = member.sum(axis=1)
    for start in range(0, len(sets), block):
        common = member[start : start + block] @ member.T
        union = sizes[start : start + block, None] + sizes[None, :] - common
        # Small counts are exact in float32; the tolerance only guards the product with the threshold.
        for i, j in zip(*np.nonzero(common >= threshold * union - 1e-4)):
            if start + i < j:
                yield int(start + i), int(j)


def connected(count: int, pairs: Iterable[Tuple[int, int]]) -> List[int]:
    """The component of each of `count` nodes, named by its smallest node (union-find)."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(node) for node in range(count)]


def assign(weights: Dict[Hashable, float], shares: Sequence[float], rng: random.Random) -> Dict[Hashable, str]:
    """Deals groups (with weights) to train, dev and test so that each comes close to its share of the total weight.

    Groups are dealt in random order, each to the set that lacks most, relative to its share. A group that is large for
    the smallest set (half of it or more) and beside the others (1.5 times the mean) goes to train.
    """
    order = sorted(weights, key=str)
    rng.shuffle(order)
    total = sum(weights.values())
    smallest = min(share for share in shares if share > 0) * total
    large = max(0.5 * smallest, 1.5 * total / max(1, len(weights)))
    order.sort(key=lambda group: weights[group] < large)
    open_splits = [(share, name) for share, name in zip(shares, SPLITS) if share > 0]
    filled = dict.fromkeys(SPLITS, 0.0)
    result = {}
    for group in order:
        split = min(open_splits, key=lambda pair: filled[pair[1]] / (pair[0] * total))[1]
        if weights[group] >= large and shares[0] > 0:
            split = "train"
        filled[split] += weights[group]
        result[group] = split
    return result


def split_clips(
    clips: Sequence[Clip],
    shares: Callable[[Clip], Sequence[float]],
    ignore: Callable[[str], AbstractSet[str]],
    seed: int,
) -> Dict[str, str]:
    """The set of each clip id that is not closed-class; clips left out as leaks are absent.

    Args:
        clips: all clips of all corpora (near-duplicates are looked for across corpora, within a language).
        shares: train, dev and test shares for a clip's corpus.
        ignore: number words of a language, which do not tell sentences apart.
        seed: of the random order in which groups are dealt.
    """
    sentences = sorted((clip for clip in clips if not clip.closed), key=lambda clip: clip.id)
    by_language: Dict[str, List[Clip]] = defaultdict(list)
    for clip in sentences:
        by_language[clip.language].append(clip)
    # A level is one group over all its languages: translations of one scene are no fair test either.
    group: Dict[str, Hashable] = {clip.id: ("level", clip.corpus, clip.group) for clip in sentences if clip.group}
    pairs: Dict[str, List[Tuple[int, int]]] = {}
    for language, members in sorted(by_language.items()):
        pairs[language] = near_duplicates([clip.text for clip in members], ignore(language))
        free = [(a, b) for a, b in pairs[language] if not (members[a].group or members[b].group)]
        for clip, root in zip(members, connected(len(members), free)):
            group.setdefault(clip.id, ("text", language, root))
    result = _assign_groups(sentences, group, shares, seed)
    for language, members in sorted(by_language.items()):
        _drop_leaks(result, [(members[a].id, members[b].id) for a, b in pairs[language]])
    _drop_leaks(result, _same_texts([clip for clip in sentences if clip.id in result]))
    return result


def _same_texts(clips: Sequence[Clip]) -> List[Tuple[str, str]]:
    """Pairs of clips with one and the same text, whatever the language ("un castor" is Spanish and French)."""
    by_text: Dict[str, List[str]] = defaultdict(list)
    for clip in clips:
        by_text[clip.text].append(clip.id)
    return [pair for ids in by_text.values() for pair in combinations(ids, 2)]


def _assign_groups(
    sentences: Sequence[Clip],
    group: Dict[str, Hashable],
    shares: Callable[[Clip], Sequence[float]],
    seed: int,
) -> Dict[str, str]:
    """Deals the groups of each corpus and language (levels: of each corpus) apart, so that each has its shares."""
    weights: Dict[str, Dict[Hashable, float]] = defaultdict(lambda: defaultdict(float))
    owner: Dict[Hashable, str] = {}
    share_of: Dict[str, Sequence[float]] = {}
    for clip in sentences:
        # A group that spans two corpora belongs to the first by name.
        name = owner.setdefault(group[clip.id], clip.corpus if clip.group else f"{clip.corpus}-{clip.language}")
        share_of.setdefault(name, shares(clip))
        weights[name][group[clip.id]] += len(clip.text)
    dealt: Dict[Hashable, str] = {}
    for name in sorted(weights):
        dealt.update(assign(weights[name], share_of[name], random.Random(f"{seed}-split-{name}")))
    return {clip.id: dealt[group[clip.id]] for clip in sentences}


def _drop_leaks(result: Dict[str, str], pairs: Sequence[Tuple[str, str]]) -> None:
    """Removes from `result` the clip of each near-duplicate pair that lies in the lesser of two different sets."""
    split = dict(result)
    for a, b in pairs:
        if split[a] != split[b]:
            result.pop(min(a, b, key=lambda clip: SPLITS.index(split[clip])), None)
