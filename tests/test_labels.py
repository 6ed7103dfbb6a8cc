"""Wrong labels that were planted are suspected; nothing is changed, and too little data suspects nobody."""

import numpy as np
import polars as pl

from components.data.labels import find_label_issues, find_suspects, predict_labels

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
    suspects = find_suspects(frame, features, [])
    found = {int(suspect.path[:3]) for suspect in suspects}
    assert len(found & flipped) >= 0.9 * len(flipped)
    assert len(found & flipped) >= 0.8 * len(found)
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
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)


def test_clean_labels_are_hardly_suspected():
    frame, features, *_ = clusters(wrong=0)
    chances, classes = predict_labels(frame, features)
    assert len(find_label_issues(frame["label"].to_list(), chances, classes)) <= 3


def test_near_duplicates_of_another_class_are_suspected_by_majority():
    frame, features, *_ = clusters(count=9, wrong=0)
    names = frame["id"].to_list()
    # two cracks and a good one that all show the same
    near = [(names[0], names[1]), (names[0], names[3]), (names[1], names[3])]
    suspects = [each for each in find_suspects(frame, features, near) if "shows the same" in each.why]
    assert [(each.path, each.given, each.suggested) for each in suspects] == [("003.png", "good", "crack")]
    tied = [each for each in find_suspects(frame, features, near[2:]) if "shows the same" in each.why]
    assert {each.path for each in tied} == {"001.png", "003.png"}
