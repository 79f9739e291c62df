"""Every place where a language chooses something: each spelling of a code does what the plain code does."""

import ast
import json

import numpy as np
import pytest
import soundfile
from command_lines import run
from corpus.entities import load_rules
from grid.worst import utterances_of
from labelled_cuts import count_cuts, make_cut
from lhotse import CutSet
from scripts import ROOT, load_script

from tokenverse_pp.api.transcribing import decode_options
from tokenverse_pp.base.config import Config, TasksConfig
from tokenverse_pp.base.config_files import check_languages
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import casefold, lower, primary_language
from tokenverse_pp.base.options import SearchOptions, TranscribeOptions
from tokenverse_pp.data.corpora.read_speech import common_voice_code, folders_of
from tokenverse_pp.data.editing.conversations import read_words
from tokenverse_pp.data.editing.label import LabelChange, label_rows
from tokenverse_pp.data.editing.mix import count_each, shares_by_language
from tokenverse_pp.data.editing.split import Wanted
from tokenverse_pp.data.importing.fields import finish_text
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.data.manifests import ManifestRow, row_bytes
from tokenverse_pp.data.normalise import NORMALISERS
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding.constraints import constraints_for, languages_written
from tokenverse_pp.decoding.language_models import bonus_for
from tokenverse_pp.evaluation.report.utterance import utterance_of
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.metrics.error_rates import score_languages
from tokenverse_pp.models.bundle import spelled_as_before
from tokenverse_pp.onnx.runtime import default_options
from tokenverse_pp.tasks import build_tasks, parse, render
from tokenverse_pp.tasks.lid import language_token
from tokenverse_pp.tasks.transcript import transcript_of

SPELLINGS = {
    "tr": ("TR", "tr-TR", "tr_TR", "TR_tr", "tur", "TUR", "tr-Latn-TR", "tr_TR.UTF-8", "tr_TR@euro", "tur-CY"),
    "az": ("AZ", "aze", "azj", "az-Latn-AZ", "az_AZ"),
    "ru": ("RU", "rus", "ru_RU", "ru-RU", "ru-Cyrl-RU", "ru_RU.KOI8-R"),
    "ca": ("CAT", "ca-ES", "ca_ES@valencia", "ca-valencia", "ca-AD"),
    "zh": ("zho", "chi", "cmn", "zh-CN", "zh_TW", "zh-Hans-CN", "CMN-hant"),
    "ja": ("jpn", "JA", "ja_JP", "ja-Jpan-JP"),
    "yue": ("zh-yue", "yue-HK", "YUE", "yue-Hant-HK"),
    "fr": ("FR", "fra", "fre", "FRA", "fr-FR", "fr_CA", "fr-Latn"),
    "ne": ("NE", "nep", "npi", "ne-NP", "ne_NP"),
}
CASES = [(plain, spelling) for plain, spellings in SPELLINGS.items() for spelling in spellings]
TEXT = "IŞIK İstanbul'da, ещё Ёж; col·lecció 今天カナ OK"
OTHER = "nl"
every_spelling = pytest.mark.parametrize(("plain", "code"), CASES)


def cut_in(code, cut_id="c", tasks=("asr", "lid"), text="bir iki"):
    return make_cut(cut_id, [{"text": text, "language": code, "speaker": "s"}], tasks)


def manifest(*arguments):
    """Exit code and output of `tokenverse-pp manifest ..`."""
    result = run("manifest", *arguments)
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A folder with a.wav."""
    folder = tmp_path_factory.mktemp("audio")
    soundfile.write(folder / "a.wav", np.zeros(16000, np.float32), 16000)
    return folder


def row_of(cut):
    data = cut.to_dict()
    return ManifestRow(f"x, cut {cut.id}", row_bytes(data), data)


def model_of(*languages):
    return build_tasks(["asr", "lid"], {"lid": {"languages": list(languages)}})


@every_spelling
def test_rules_of_texts(plain, code):
    assert primary_language(code) == plain
    for normaliser in NORMALISERS.values():
        assert normaliser(TEXT, code) == normaliser(TEXT, plain)
    assert lower(TEXT, code) == lower(TEXT, plain) and casefold(TEXT, code) == casefold(TEXT, plain)
    spans = [(5, 15, "LOC")]
    assert finish_text(TEXT, spans, "words", code, widen=True) == finish_text(TEXT, spans, "words", plain, widen=True)


def test_the_rules_are_those_of_the_language():
    """So that the equality above is not that of two texts without rules."""
    assert len({NORMALISERS["words"](TEXT, plain) for plain in SPELLINGS}) == 5  # tr az, ru, ca, zh ja yue, fr ne
    assert lower("I", "tr-TR") == "ı" and lower("I", "de-DE") == "i"


@every_spelling
def test_a_label_is_written_with_the_token_of_the_model(plain, code):
    tasks = model_of(OTHER, plain)
    cut = cut_in(code)
    assert check_cut(cut) == check_cut(cut, tasks) == []
    written = transcript_of(cut, tasks)
    assert written.language == plain and render(written, tasks) == f"{language_token(plain)} bir iki"
    assert parse(render(written, tasks), tasks) == tasks.restrict(written)
    # Nor does the spelling in the model's own configuration matter: its token stays what it is.
    model = model_of(OTHER, code)
    assert render(transcript_of(cut_in(plain), model), model).startswith(language_token(code))


@every_spelling
def test_scores(plain, code):
    def scores(*codes, **options):
        cuts = [cut_in(codes[0], "a"), cut_in(codes[1], "b"), cut_in(OTHER, "c")]
        texts = [f"{language_token(plain)} bir iki", "[NL] bir", "[NL] bir iki"]
        hyps = [{"id": cut.id, "text": text, "tasks": ["asr", "lid"]} for cut, text in zip(cuts, texts)]
        return score_hypotheses(cuts, hyps, **options)

    expected = scores(plain, plain)
    assert expected["lid"]["confusion"][plain] == {plain: 1, OTHER: 1} and expected["wer"][plain]["words"] == 4
    for codes in ((code, code), (plain, code), (code, plain)):
        assert scores(*codes) == expected
        assert scores(*codes, tasks=model_of(plain, OTHER)) == expected
    pairs = [(plain, plain), (plain, None)]
    assert score_languages([(code, plain), (plain, None)]) == score_languages(pairs)
    unlabelled = [{**hyp, "tasks": ["asr"], "text": "bir"} for hyp in ({"id": "c"},)]
    assert score_hypotheses([cut_in(code, tasks=["asr"])], unlabelled) == score_hypotheses(
        [cut_in(plain, tasks=["asr"])], unlabelled
    )


@every_spelling
def test_tables_of_errors(plain, code):
    hyp = {"id": "c", "text": f"{language_token(plain)} bir iki"}
    assert utterance_of(cut_in(code), hyp, None).language == plain
    [utterance] = utterances_of([cut_in(code)], [hyp], [])
    assert utterance.language == utterance.hyp_language == plain


@every_spelling
def test_statistics_and_mixing(plain, code, tmp_path):
    cuts = [cut_in(plain, "a"), cut_in(code, "b"), cut_in(OTHER, "c")]
    assert list(count_cuts(cuts)) == sorted(["all", plain, OTHER])
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    CutSet.from_cuts(cuts[:1]).to_file(paths[0])
    CutSet.from_cuts(cuts[1:]).to_file(paths[1])
    counts = count_each(paths)
    assert set(counts[0].languages) | set(counts[1].languages) == {plain, OTHER}
    assert shares_by_language(counts, 0.0) == pytest.approx([0.25, 0.75])


@every_spelling
def test_subsets_and_labels(plain, code):
    for asked, found in ((plain, code), (code, plain), (code, code)):
        assert Wanted(languages=frozenset([asked])).takes(row_of(cut_in(found)))
        assert not Wanted(languages=frozenset([OTHER])).takes(row_of(cut_in(found)))
        [same] = label_rows([row_of(cut_in(found, tasks=["asr"]))], LabelChange(add=("lid",), language=asked))
        assert same["supervisions"][0]["language"] == found  # as it was
    [new] = label_rows([row_of(cut_in(None, tasks=["asr"]))], LabelChange(add=("lid",), language=code))
    assert check_cut(cut_in(new["supervisions"][0]["language"]), model_of(plain)) == []
    with pytest.raises(UserError, match="already, not 'nl'"):
        list(label_rows([row_of(cut_in(code))], LabelChange(language=OTHER)))


@pytest.fixture(scope="module")
def tokenizers():
    """One a language, all trained on the same words."""
    texts = ["ışık istanbul da bir iki", "еще еж col·lecció 今 天 カ ナ ok i ş"] * 2
    return {plain: train_tokenizer(texts, model_of(OTHER, plain), 60) for plain in SPELLINGS}


@every_spelling
def test_the_search(plain, code, tokenizers):
    tasks, tokenizer = model_of(OTHER, plain), tokenizers[plain]
    options = decode_options(TranscribeOptions(language=code), tasks).search
    assert options.languages == (code,) and languages_written(options, tasks) == [plain]
    assert default_options(None, code).languages == (code,)  # the ONNX runtime; its tables are these
    forced, expected = (
        constraints_for(tasks, tasks.names, tokenizer, languages, True) for languages in ([code], [plain])
    )
    assert (forced.weights == expected.weights).all() and (forced.following == expected.following).all()
    with pytest.raises(UserError, match=r"does not write \[DE\]"):
        constraints_for(tasks, tasks.names, tokenizer, ["de"], True)


@every_spelling
def test_language_models_and_hotwords(plain, code, tokenizers, tmp_path):
    tasks, tokenizer = model_of(OTHER, plain), tokenizers[plain]
    kept = []
    for name in (plain, code):
        folder = tmp_path / f"named-{name}"
        folder.mkdir()
        (folder / f"{name}.tsv").write_text("IŞIK\t9\nЕщё\t3\ncol·lecció\t2\n今天\t1\n", encoding="utf-8")
        (folder / f"{OTHER}.tsv").write_text("bir\t1\n", encoding="utf-8")
        for lm in (folder, folder / f"{name}.tsv"):
            search = SearchOptions(lm=str(lm), languages=(code,), hotwords=("IŞIK",))
            bonus = bonus_for(search, tokenizer, tasks)
            ids = [tokenizer.id_of(language_token(plain)), *tokenizer.encode("ışık еще 今 天")]
            kept.append(bonus.walk(ids)[1])
    assert kept[0] == pytest.approx(kept[2]) and kept[1] == pytest.approx(kept[3])


@every_spelling
def test_import(plain, code, audio, tmp_path):
    table, out = tmp_path / "t.tsv", tmp_path / "cuts.jsonl"
    table.write_text(
        "".join("\t".join(row) + "\n" for row in (("audio", "text", "language"), ("a.wav", TEXT, code))),
        encoding="utf-8",
    )
    of_row = ("import", out, "--table", table, "--audio-dir", audio, "--normaliser", "words", "--overwrite")
    for arguments in (of_row, (*of_row, "--column", "language=", "--set", f"language={code}")):
        exit_code, said = manifest(*arguments)
        assert exit_code == 0, said
        cut = json.loads(out.read_text(encoding="utf-8"))
        [turn] = cut["supervisions"]
        assert turn["text"] == NORMALISERS["words"](TEXT, plain)
        assert cut["custom"]["tasks"] == ["asr", "lid"] and check_cut(cut_in(turn["language"]), model_of(plain)) == []


def test_what_import_writes(audio, tmp_path):
    """The canonical form: what a user has written so stays."""
    spelt = {"fr": "fr", "FR": "fr", "fra": "fr", "fr-FR": "fr-FR", "pt_br": "pt-BR", "zh-yue": "yue", "cmn": "cmn"}
    rows = "".join(f"a.wav\toui\t{code}\n" for code in spelt)
    (tmp_path / "t.tsv").write_text(f"audio\ttext\tlanguage\n{rows}", encoding="utf-8")
    out = tmp_path / "cuts.jsonl"
    assert manifest("import", out, "--table", tmp_path / "t.tsv", "--audio-dir", audio)[0] == 0
    cuts = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [cut["supervisions"][0]["language"] for cut in cuts] == list(spelt.values())


@every_spelling
def test_conversations(plain, code):
    turn = make_cut("c", [{"text": TEXT, "language": code}]).supervisions[0]
    assert read_words(turn, "words").text == NORMALISERS["words"](TEXT, plain)
    turn.language = "Turkish"
    with pytest.raises(UserError, match=r"supervision c-0: --normaliser words: .*'tr'"):
        read_words(turn, "words")


@every_spelling
def test_corpora(plain, code):
    assert folders_of([code], [OTHER, plain], "corpus") == [plain]
    assert folders_of([plain], [OTHER, code], "corpus") == [code]
    if plain in ("fr", "ru"):
        assert load_rules(code) == load_rules(plain)


def test_locales_of_common_voice():
    locales = "sv-SE sv|SV_se sv|zh-CN zh|zh-HK yue|zh_hk yue|nan-tw nan|kmr kmr"
    for locale, code in map(str.split, locales.split("|")):
        assert common_voice_code(locale) == code
    with pytest.raises(UserError, match="corpus has zh-CN and zh-HK: expected one of them"):
        folders_of(["zh"], ["zh-CN", "zh-HK"], "corpus")


def test_word_lists_of_wordfreq():
    pytest.importorskip("wordfreq")
    script = load_script(ROOT / "recipes" / "human_speech" / "word_lists.py", "word_lists_spelled")
    for plain in ("tr", "ru", "zh", "fr"):
        assert {script.code_of_words(code) for code in (plain, *SPELLINGS[plain])} == {plain}


def test_regions_that_a_model_tells_apart_stay_apart():
    tasks = model_of("pt-BR", "pt-PT")
    for code, token in (("pt_br", "[PT-BR]"), ("POR-PT", "[PT-PT]"), ("pt-BR", "[PT-BR]")):
        assert check_cut(cut_in(code), tasks) == []
        assert render(transcript_of(cut_in(code), tasks), tasks).startswith(token)
    [problem] = check_cut(cut_in("pt"), tasks)
    assert "'pt' may be pt-BR or pt-PT: expected one of them" in problem
    [problem] = check_cut(make_cut("c", [{"text": "a", "language": x} for x in ("pt-BR", "pt-PT")], ["asr", "lid"]))
    assert "one cut, one language; found pt-BR, pt-PT" in problem
    mixed = make_cut("c", [{"text": "a", "language": x} for x in ("fr", "FRA", "fr-CA")], ["asr", "lid"])
    assert check_cut(mixed) == check_cut(mixed, model_of("fr")) == []
    cuts = [cut_in("pt_BR", "a"), cut_in("pt-PT", "b")]
    hyps = [{"id": cut.id, "text": "[PT-PT] bir iki"} for cut in cuts]
    for options in ({"tasks": tasks}, {}):
        scores = score_hypotheses(cuts, hyps, **options)
        assert scores["lid"]["accuracy"] == 0.5 and set(scores["wer"]) == {"all", "pt-br", "pt-pt"}
    # A model of one region only means the language by it.
    assert score_hypotheses(cuts, hyps, tasks=model_of("pt-PT"))["lid"]["accuracy"] == 1
    assert score_languages([("fr-FR", "fr-ca")])["accuracy"] == 1
    assert not Wanted(languages=frozenset(["pt-BR"])).takes(row_of(cut_in("pt-PT")))
    search = SearchOptions(languages=("pt",))
    assert languages_written(search, tasks) == ["pt-BR", "pt-PT"]


def test_files_of_language_models_that_do_not_fit_are_named(tokenizers, tmp_path):
    tasks, tokenizer = model_of(OTHER, "fr"), tokenizers["fr"]
    (tmp_path / "nl.tsv").write_text("bir\t1\n", encoding="utf-8")

    def refused(*names):
        for name in names:
            (tmp_path / name).write_text("iki\t1\n", encoding="utf-8")
        with pytest.raises(UserError) as caught:
            bonus_for(SearchOptions(lm=str(tmp_path)), tokenizer, tasks)
        for name in names:
            (tmp_path / name).unlink()
        return str(caught.value)

    assert "fr-BE.tsv and fr-CA.tsv are both for fr" in refused("fr-CA.tsv", "fr-BE.tsv")
    assert "fr-CA.tsv: would not be used: the model's fr has fr.tsv" in refused("fr.tsv", "fr-CA.tsv")
    assert "fr.arpa and fr.tsv are of one language" in refused("fr.tsv", "fr.arpa")
    assert "French.tsv: the model has no language 'French'" in refused("French.tsv")


def test_what_is_no_code_is_an_error_with_a_hint(audio, tmp_path):
    [problem] = check_cut(cut_in("Turkish"))
    assert "field 'language': expected a code" in problem and problem.endswith("found 'Turkish'; did you mean 'tr'?")
    hints = {"French (Canada)": "'fr'", "jp": "'ja'", "cz": "'cs'", "Türkçe": "'tr'", "thai": "'th'"}
    for code, hint in hints.items():
        with pytest.raises(UserError, match=f"expected a code .*; did you mean {hint}"):
            NORMALISERS["words"]("a", code)
    with pytest.raises(UserError, match=r"found '12'$"):
        NORMALISERS["words"]("a", "12")
    assert check_cut(cut_in("jp")) == []  # old manifests have it
    assert check_cut(cut_in("English", tasks=["asr"])) == []  # as lhotse's recipes write it
    table = tmp_path / "t.tsv"
    table.write_text("audio\ttext\tlanguage\na.wav\toui\tfr\na.wav\tevet\tTurkish\n", encoding="utf-8")
    arguments = ("import", tmp_path / "c.jsonl", "--table", table, "--audio-dir", audio)
    exit_code, said = manifest(*arguments)
    assert exit_code == 2 and f"{table}, line 3: field 'language': expected a code" in said and "'tr'" in said
    exit_code, said = manifest(*arguments, "--set", "language=Turkish")
    assert exit_code == 2 and "--set language: expected a code" in said


def test_languages_of_a_configuration():
    check_languages(TasksConfig(languages=["pt-BR", "pt-PT", "FRA", "qaa"]))
    with pytest.raises(UserError, match=r"--tasks\.languages: fr and FRA are the same language"):
        check_languages(TasksConfig(languages=["fr", "FRA"]))
    with pytest.raises(UserError, match=r"--tasks\.languages: expected a code .*'German'; did you mean 'de'"):
        check_languages(TasksConfig(languages=["German"]))


def test_a_run_that_goes_on_spells_languages_as_its_vocabulary(tokenizers, tmp_path):
    config = Config()
    config.tasks.languages = ["FRA", "NLD", "de"]
    assert spelled_as_before(config) == config.tasks.languages
    tokenizers["fr"].save(tmp_path / "tokenizer.model")
    config.training.init_from = str(tmp_path)
    assert spelled_as_before(config) == ["fr", "nl", "de"]
    config.training.init_from, config.tokenizer.model = None, str(tmp_path / "tokenizer.model")
    assert spelled_as_before(config) == ["fr", "nl", "de"]


# Comparisons of what is named a language but is none.
NO_CODES = {
    "language not in self._indexes",  # of a primary language
    "by == 'language'",  # manifest mix --by language
    "name == 'language'",  # a field
    "'language' in keys",
    "language != 'all'",  # a key of the scores
    "language_token(code) == piece",  # the inverse of language_code
    "language_token(c) not in known",
    "language_token(code) in tokens",
    "other != language",  # entries of one model
    "rules in UNSPACED_LANGUAGES",  # of `rules_language`
    "primary_language(language) in TURKIC_I",
    "u.hyp_language != u.language",  # both as the model writes them
    "language in packages.ASTERISK_LANGUAGES",  # names of Debian packages
    "(language, key) in _WRONG_TEXTS",
    "path.name in ASR_LANGUAGES",  # names of folders, as lhotse has them
    "name in ASR_LANGUAGES",
    "language == 'en'",  # a primary language, as is the next
    "language in BY_LETTER",
    "silence.row in languages",  # rows of a table
    "name != NO_LANGUAGE",  # a key of the scores
    "code not in available_languages()",  # of wordfreq, by `code_of_words`
}


def test_nothing_else_compares_the_strings():
    found = set()
    for path in [*(ROOT / "tokenverse_pp").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        if path == ROOT / "tokenverse_pp" / "base" / "languages.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                named = "language" in text.lower().replace("language_model", "")
                counted = any(isinstance(x, ast.Constant) and not isinstance(x.value, str) for x in node.comparators)
                if named and not counted:
                    found.add(text)
    assert found <= NO_CODES
