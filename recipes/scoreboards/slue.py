"""Named entities of SLUE-VoxPopuli, scored as its toolkit does (asappresearch/slue-toolkit, eval_utils_ner.py).

The corpus is labelled with the 18 types of OntoNotes 5. The board scores the "combined" labels: 7 groups, and five rare
types count as no entity. Of each utterance the multiset of (phrase, type) is compared (F1), or that of the types alone
(label-F1); counts are summed over all utterances (micro average). The macro average is over types.

Phrases are compared in lower case, without punctuation, and with the apostrophe and what follows as a word of its own,
as in the toolkit's files. A possessive 's at the end does not count: the toolkit's entity is "europe" of "europe 's
borders", where a manifest, whose entities are whole words, has "europe's".
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.data.corpora.voxpopuli import SLUE_COMBINED
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.metrics.f1 import Phrase, Prf, f1_score, score_entities
from tokenverse_pp.tasks.base import ScoredExample

# Types that are scored, and groups themselves (raw_to_combined_tag_map of slue_toolkit/generic_utils.py).
GROUP_OF = {name: group for kind, group in SLUE_COMBINED.items() if group is not None for name in (kind, group)}
DISCARDED = [kind for kind, group in SLUE_COMBINED.items() if group is None]

Entities = Tuple[List[Phrase], List[Phrase]]  # of the reference, of the hypothesis


def phrase_of(words: str) -> str:
    """The words of an entity as they are compared.

    >>> phrase_of("Europe's"), phrase_of("Europe's Green Deal"), phrase_of("o'clock")
    ('europe', "europe 's green deal", "o 'clock")
    """
    found = " ".join(normalise(words, "en").replace("'", " '").split())
    return found[: -len(" 's")] if found.endswith(" 's") else found


def entities_of(examples: Sequence[ScoredExample], combined: bool = True) -> List[Entities]:
    """Phrases and types of each utterance on both sides.

    Args:
        examples: labelled for ``ner``, types as in OntoNotes or already in groups.
        combined: the board's groups, without the discarded types; False: the types as they are.

    Raises:
        UserError: for a reference of a type that SLUE does not have, or without one.
    """
    found = []
    for example in examples:
        sides: List[List[Phrase]] = []
        for answers in (example.ref, example.hyp):
            side = [(phrase_of(answers.phrase(entity)), entity.type) for entity in answers.entities]
            sides.append(
                [(phrase, group(kind)) for phrase, kind in side if kind not in DISCARDED] if combined else side
            )
        unknown = sorted({str(kind) for _, kind in sides[0]} - {*GROUP_OF, *DISCARDED})
        if unknown:
            known = ", ".join(sorted({*GROUP_OF, *DISCARDED}))
            raise UserError(f"cut {example.id}: entity type {unknown[0]}: expected those of SLUE ({known}, ..)")
        found.append((sides[0], sides[1]))
    return found


def group(kind: Optional[str]) -> Optional[str]:
    """The board's group of a type. A type that SLUE does not have stays: as a hypothesis it is wrong."""
    return GROUP_OF.get(kind, kind) if kind is not None else None


def entity_scores(pairs: Sequence[Entities]) -> Dict[str, Any]:
    """``f1`` and ``label_f1`` (micro), each with ``types``, and ``macro_f1`` over the types on either side.

    Without types in the hypotheses (a model whose ``ner`` is untyped) there is ``untyped_f1`` alone: of the phrases,
    which is not SLUE's.
    """
    if any(kind is None for _, hyp in pairs for _, kind in hyp):
        bare = [([(phrase, None) for phrase, _ in ref], [(phrase, None) for phrase, _ in hyp]) for ref, hyp in pairs]
        return {"untyped_f1": _as_slue(score_entities(bare)["exact"])}
    scores = score_entities(pairs)
    kinds: Set[str] = {str(kind) for both in pairs for side in both for _, kind in side}
    found: Dict[str, Any] = {}
    for name, key in (("f1", "exact"), ("label_f1", "label")):
        types = {kind: _as_slue(score_entities(_of_type(pairs, kind))[key]) for kind in sorted(kinds)}
        macro = sum(prf["f1"] for prf in types.values()) / max(len(types), 1)
        found[name] = {**_as_slue(scores[key]), "types": types, "macro_f1": macro}
    return found


def _of_type(pairs: Sequence[Entities], kind: str) -> List[Entities]:
    return [([p for p in ref if p[1] == kind], [p for p in hyp if p[1] == kind]) for ref, hyp in pairs]


def _as_slue(prf: Prf) -> Prf:
    """SLUE's 0/0 is 0, also where there is nothing to find."""
    nothing = prf["tp"] == prf["fp"] == prf["fn"] == 0
    return {**f1_score(0, 1, 1), "fp": 0, "fn": 0} if nothing else prf


def entity_table(scores: Mapping[str, Any], combined: bool) -> str:
    """F1 and label-F1, over all entities and by type."""
    rows = [["entities", "F1 %", "precision %", "recall %", "label-F1 %", "in reference", "written"]]
    if "untyped_f1" in scores:
        rows[0].remove("label-F1 %")
        rows.append(["phrases alone (not SLUE's F1)", *_percent(scores["untyped_f1"]), *_counts(scores["untyped_f1"])])
        return aligned(rows)
    f1, label = scores["f1"], scores["label_f1"]
    for name, exact, types in [
        ("micro average", f1, label),
        *((kind, f1["types"][kind], label["types"][kind]) for kind in f1["types"]),
    ]:
        rows.append([name, *_percent(exact), f"{100 * types['f1']:.1f}", *_counts(exact)])
    macro = [f"{100 * scores[name]['macro_f1']:.1f}" for name in ("f1", "label_f1")]
    rows.append(["macro average", macro[0], "", "", macro[1], "", ""])
    head = "combined labels, as on the board" if combined else "raw labels, which the board does not rank"
    return f"{head}\n{aligned(rows)}"


def _percent(prf: Mapping[str, Any]) -> List[str]:
    return [f"{100 * prf[key]:.1f}" for key in ("f1", "precision", "recall")]


def _counts(prf: Mapping[str, Any]) -> List[str]:
    return [str(prf["tp"] + prf["fn"]), str(prf["tp"] + prf["fp"])]
