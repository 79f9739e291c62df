from tokenverse_pp.metrics.error_rates import score_languages


def test_confusion_and_accuracy():
    scores = score_languages([("fr", "fr"), ("fr", "nl"), ("nl", "nl"), ("nl", None), ("nl", "")])
    assert scores["accuracy"] == 0.4
    assert scores["confusion"] == {"fr": {"fr": 1, "nl": 1}, "nl": {"nl": 1, "none": 2}}
    assert scores["utterances"] == 5


def test_nothing_to_score():
    assert score_languages([]) == {"accuracy": 0.0, "confusion": {}, "utterances": 0}
