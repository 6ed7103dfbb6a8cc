"""Wrong labels that were planted are suspected; nothing is changed, and too little data suspects nobody."""

import numpy as np
import polars as pl
import pytest

from components.data.checks.labels import find_label_issues, find_suspects, judge_labels, predict_labels

CLASSES = ("crack", "good", "pit")


def clusters(count=300, wrong=15, width=24):
    """Rows in groups of three with features around their class's centre, and which labels are wrong."""
    rng = np.random.default_rng(0)
    truth = [CLASSES[(number // 3) % 3] for number in range(count)]
    centres = dict(zip(CLASSES, rng.normal(0, 1, (3, width)), strict=True))
    features = np.stack([centres[label] + rng.normal(0, 1, width) for label in truth]).astype(np.float16)
    flipped = set(rng.choice(count, wrong, replace=False).tolist())
    labels = [CLASSES[(CLASSES.index(t) + 1) % 3] if number in flipped else t for number, t in enumerate(truth)]
    contents = [f"{number:064x}" for number in range(count)]
    frame = pl.DataFrame(
        {
            "id": contents,
            "path": [f"{number:03}.png" for number in range(count)],
            "crop": pl.Series([None] * count, dtype=pl.List(pl.Int64)),
            "label": labels,
            "group": [f"g{number // 3}" for number in range(count)],
        }
    )
    known = pl.DataFrame({"key": contents[::-1], "feature": [row.tobytes() for row in features[::-1]]})
    return frame, known, truth, flipped


def test_planted_labels_are_found():
    frame, features, truth, flipped = clusters()
    judgement = find_suspects(frame, features, [])
    suspects = judgement.suspects
    found = {int(suspect.path[:3]) for suspect in suspects}
    assert len(found & flipped) >= 0.9 * len(flipped)
    assert len(found & flipped) >= 0.9 * len(found)
    assert judgement.expected == pytest.approx(len(found & flipped) / len(found), abs=0.15)
    assert all(
        suspect.suggested == truth[int(suspect.path[:3])] for suspect in suspects if int(suspect.path[:3]) in flipped
    )
    assert [suspect.score for suspect in suspects] == sorted(suspect.score for suspect in suspects)


def test_the_model_never_saw_the_group_it_judges():
    frame, features, *_ = clusters(wrong=0)
    alone = frame.with_columns(group=pl.lit("one"))
    assert predict_labels(alone, features) is None
    chances, classes = predict_labels(frame, features)
    assert classes == sorted(CLASSES)
    np.testing.assert_allclose(np.exp(chances).sum(axis=1), 1, rtol=1e-5)


def test_clean_labels_are_hardly_suspected():
    frame, features, *_ = clusters(wrong=0)
    chances, classes = predict_labels(frame, features)
    issues, accuracy = find_label_issues(frame["label"].to_list(), chances, classes)
    assert issues == []
    assert accuracy > 0.95


def test_features_that_cannot_decide_suspect_no_label():
    frame, features, *_ = clusters(wrong=15)
    noise = np.random.default_rng(1).normal(0, 1, (300, 24)).astype(np.float16)
    weak = features.with_columns(feature=pl.Series([row.tobytes() for row in noise]))
    judgement = find_suspects(frame, weak, [])
    assert judgement.suspects == ()
    assert judgement.accuracy < 0.5
    assert "too little to cast doubt on a label" in judgement.note


def test_a_label_is_as_doubtful_as_the_model_deserves():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    for skill in (0.6, 3.0):  # a weak and a good model, both far too sure of themselves
        logits = np.where(np.arange(2) == truth[:, None], skill, 0) + rng.normal(0, 1, (4000, 2))
        given = np.where(rng.random(4000) < 0.05, 1 - truth, truth)
        sure = 5 * logits
        wrong = judge_labels(sure - np.log(np.exp(sure).sum(axis=1, keepdims=True)), given)
        listed = wrong > 0.7
        assert wrong[listed].mean() == pytest.approx((given != truth)[listed].mean(), abs=0.1) if listed.any() else True
        assert listed.any() == (skill > 1)


def test_near_duplicates_of_another_class_are_suspected_by_majority():
    frame, features, *_ = clusters(count=9, wrong=0)
    names = frame["id"].to_list()
    # two cracks and a good one that all show the same
    near = [(names[0], names[1]), (names[0], names[3]), (names[1], names[3])]
    suspects = [each for each in find_suspects(frame, features, near).suspects if "shows the same" in each.why]
    assert [(each.path, each.given, each.suggested) for each in suspects] == [("003.png", "good", "crack")]
    tied = [each for each in find_suspects(frame, features, near[2:]).suspects if "shows the same" in each.why]
    assert {each.path for each in tied} == {"001.png", "003.png"}
