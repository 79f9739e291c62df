"""Entities from a spaCy pipeline (optional extra "entities")."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from tokenverse_pp.errors import UserError, one_line
from tokenverse_pp.manifests.gazetteer import Span, word_starts

BATCH = 256  # texts
BEAM_WIDTH, BEAM_DENSITY = 16, 1e-4  # spaCy's own defaults for `beam_parse`


class SpacyEntities:
    """Finds entities with an installed pipeline, or one saved to a folder.

    A span that begins or ends inside a word (spaCy splits ``l'italie``) is widened to whole words; of spans that then
    overlap, the first counts. The confidence of an entity of a trained recogniser is the share that it has in
    the beam (spaCy's ``EntityRecognizer.scored_ents``); rules give none, and get ``confidence``.

    Args:
        name: of the pipeline, or its folder.
        confidence: of entities that have no score.

    Raises:
        UserError: where spaCy or the pipeline is not installed.
    """

    def __init__(self, name: str, confidence: float):
        try:
            import spacy
        except Exception as error:  # one that is there may fail in other ways than ImportError
            said = f"entities from spaCy need it ({one_line(error)}): pip install 'tokenverse_pp[entities]'"
            raise UserError(said) from None
        try:
            self.pipeline = spacy.load(name)
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"--spacy {name}: no pipeline that can be loaded: {reason}") from None
        self.source = f"spacy/{Path(name).name}"
        self.confidence = confidence
        self.recogniser: Optional[Any] = None
        if "ner" in self.pipeline.pipe_names and hasattr(self.pipeline.get_pipe("ner"), "scored_ents"):
            self.recogniser = self.pipeline.get_pipe("ner")

    def find(self, texts: Iterable[str], languages: Iterable[Optional[str]] = ()) -> Iterator[List[Span]]:
        """The entities of each text, in order. The pipeline is of one language, so ``languages`` changes nothing."""
        for batch in _batches(texts):
            docs = list(self.pipeline.pipe(batch, batch_size=BATCH))
            for text, doc, scores in zip(batch, docs, self._scores(docs)):
                yield self._spans(text, doc, scores)

    def _scores(self, docs: Sequence[Any]) -> Sequence[Dict[Tuple[int, int, str], float]]:
        """For each doc the shares of (first token, last token + 1, type) in the recogniser's beam."""
        if self.recogniser is None:
            return [{} for _ in docs]
        beams = self.recogniser.beam_parse(docs, beam_width=BEAM_WIDTH, beam_density=BEAM_DENSITY)
        return self.recogniser.scored_ents(beams)

    def _spans(self, text: str, doc: Any, scores: Dict[Tuple[int, int, str], float]) -> List[Span]:
        words, starts = word_starts(text)
        found: List[Span] = []
        for entity in doc.ents:
            touched = [
                i
                for i, (word, start) in enumerate(zip(words, starts))
                if start < entity.end_char and start + len(word) > entity.start_char
            ]
            if not touched or (found and starts[touched[0]] < found[-1].end):
                continue
            end = starts[touched[-1]] + len(words[touched[-1]])
            score = scores.get((entity.start, entity.end, entity.label_), self.confidence)
            found.append(Span(starts[touched[0]], end, entity.label_, round(min(1.0, float(score)), 4)))
        return found


def _batches(texts: Iterable[str]) -> Iterator[List[str]]:
    batch: List[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
