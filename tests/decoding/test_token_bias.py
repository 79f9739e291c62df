"""A token's bias: as if the joiner's output had it, in every search; known to command lines; refused with a reason."""

import copy

import pytest
import torch
from test_decoder import load, run
from toy_runs import assert_one_line, call, read_cuts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions, StreamingOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.decoding.pauses import pause_reader_of
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.decoding.streaming.transcriber import StreamingTranscriber

BIAS, NEVER = (("[SCD]", -2.0), ("[ENDP]", 2.5)), (("[SCD]", -99.0), ("[ENDP]", -99.0))


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    return load(tiny_corpus, model__vectors__placement="both")


@pytest.fixture(scope="module")
def biased(loaded):
    """The same model with `BIAS` in the bias of its joiner."""
    if torch.__version__ < "2":
        pytest.skip("torch 1.13 copies no module with weight norm")
    other = copy.deepcopy(loaded)
    with torch.no_grad():
        for token, number in BIAS:
            other.model.joiner.output.bias[loaded.tokenizer.id_of(token)] += number
    return other


def texts(loaded, cuts, method="beam", bias=(), **more):
    options = SearchOptions(method, token_bias=bias)
    return [record["text"] for record in run(loaded, cuts, options=options, **more).values()]


@pytest.mark.parametrize("method", ["greedy", "beam", pytest.param("full_beam", marks=pytest.mark.slow)])
def test_a_bias_is_that_of_the_joiner_in_every_search(tiny_corpus, loaded, biased, method):
    cuts = read_cuts(tiny_corpus, "test")
    plain = texts(loaded, cuts, method)
    assert texts(loaded, cuts, method, BIAS) == texts(biased, cuts, method) != plain
    assert texts(loaded, cuts, method, BIAS, window=1.0, overlap=0.2) == texts(
        biased, cuts, method, window=1.0, overlap=0.2
    )
    assert texts(loaded, cuts, method) == plain  # the model is as it was
    without = texts(loaded, cuts, method, NEVER)
    assert "[SCD]" in " ".join(plain) and not any("[SCD]" in text or "[ENDP]" in text for text in without)


def test_confidences_and_pauses_know_the_bias(tiny_corpus, loaded, biased):
    cut = read_cuts(tiny_corpus, "test")[0]
    found = [
        Recognizer(model, DecodeOptions(SearchOptions(token_bias=bias), pauses=True)).recognize([load_inputs(cut)])
        for model, bias in ((loaded, BIAS), (biased, ()), (loaded, ()))
    ]
    assert found[0] == found[1] != found[2]
    readers = [pause_reader_of(loaded, SearchOptions(token_bias=bias)) for bias in (BIAS, ())]
    moved = readers[0].joiner.output.bias.detach() - readers[1].joiner.output.bias.detach()
    assert moved[loaded.tokenizer.id_of("[SCD]")] == pytest.approx(-2.0)
    assert int(moved.count_nonzero()) == len(BIAS)


def test_streams_have_a_bias_each(tiny_corpus, loaded, biased):
    audio = load_inputs(read_cuts(tiny_corpus, "test")[0])
    transcriber = StreamingTranscriber(loaded, StreamingOptions())
    more = SearchOptions("greedy", token_bias=BIAS)
    streams = [transcriber.open(), transcriber.open(search=more)]
    events = [transcriber.push(stream, audio) + transcriber.close(stream) for stream in streams]
    other = StreamingTranscriber(biased, StreamingOptions())
    stream = other.open()
    expected = other.push(stream, audio) + other.close(stream)
    words = [[word.text for event in kind if event.kind == "final" for word in event.words] for kind in events]
    assert words[1] == [word.text for event in expected if event.kind == "final" for word in event.words] != words[0]


def test_a_bias_of_an_unknown_token_or_no_number_is_refused(loaded):
    with pytest.raises(UserError, match=r"search option 'token_bias': the tokenizer has no symbol \[XY\]"):
        Recognizer(loaded, DecodeOptions(SearchOptions(token_bias=(("[XY]", 1.0),))))
    for bad in ("[SCD]", ("[SCD]", float("nan")), ("[SCD]", True), (1, 1.0)):
        with pytest.raises(UserError, match="'token_bias': expected"):
            SearchOptions(token_bias=(bad,))
    assert SearchOptions(token_bias=[["[SCD]", 1]]).token_bias == (("[SCD]", 1.0),)


def test_the_command_line_takes_a_bias(tiny_corpus, finished_run, decode_script, tmp_path):
    given = ["--model", finished_run, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--no-report", "--threads", 1]
    never = [word for token, number in NEVER for word in ("--token-bias", f"{token}={number}")]
    assert call(decode_script.main, *given, "--output-dir", tmp_path / "a", *never).code == 0
    written = (tmp_path / "a" / "hyps.jsonl").read_text()
    assert "[SCD]" not in written and "[ENDP]" not in written
    failure = call(decode_script.main, *given, "--output-dir", tmp_path / "b", "--token-bias", "[SCD]")
    assert_one_line(failure, "--token-bias: expected TOKEN=NUMBER such as [SCD]=0.7", "got '[SCD]'")
