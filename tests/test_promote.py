"""A version held until a person agrees, and trained again from its own record: through the command line."""

import hashlib
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import DOMAIN, create_workspace, run_tessera

from components.records.history import Promotion
from components.records.jobs import Result
from components.workspace import Workspace
from flows.reproduce import _find_difference, measure_difference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    gates = {"floor": 0.0, "approval": True, "max_latency_ms": 60_000, "max_memory_mb": 50_000, "max_ece": 1.0}
    changes = {"candidates": [{"kind": "vpt", "num_prompts": 2}], "gates": gates | {"costs": {"*": {"none": 20}}}}
    return create_workspace(tmp_path_factory.mktemp("promote") / "workspace", images, **changes)


def test_a_version_waits_for_a_person_and_is_trained_again(place: Path) -> None:
    held = run_tessera(place, "retrain", DOMAIN)
    assert "error" not in held.outcome, held.stderr
    assert (held.code, held.outcome["status"], held.outcome["champion_version"]) == (1, "held", None), held.stderr
    assert f"`tessera approve {DOMAIN} 1 --by NAME --reason WHY`" in held.outcome["reason"]
    gates = {found["gate"]: found for found in held.outcome["findings"]}
    assert {"costs", "calibration", "latency", "memory", "data", "split", "lineage", "approval"} <= gates.keys()
    assert gates["latency"]["evidence"]["latency_ms_p50"] > 0
    assert gates["lineage"]["evidence"]["data_version"] == held.outcome["data_version"]
    agreed = run_tessera(place, "approve", DOMAIN, "1", "--by", "ada", "--reason", "looked at every mistake")
    assert agreed.code == 0, agreed.stderr
    agreed.read(Promotion)
    judged, promoted = agreed.outcome["records"]
    assert [(r["action"], r["verdict"]) for r in (judged, promoted)] == [("judge", "HOLD"), ("promote", "PROMOTE")]
    assert promoted["who"] == "ada"
    assert "Approved by ada: looked at every mistake." in promoted["reason"]
    assert agreed.outcome["ledger_problems"] == []
    assert load_evidence(place, 1) == {record["evidence_sha256"] for record in (judged, promoted)}
    again = run_tessera(place, "reproduce", DOMAIN, "1")
    assert again.code == 0, again.stderr
    assert (again.outcome["verdict"], again.outcome["bit_equal"]) == ("PASS", True)
    assert not (place / ".tessera" / "reproduce" / f"{DOMAIN}-1").exists()
    # An older processor, as far as torch can tell: other bits.
    older = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    elsewhere = run_tessera(place, "reproduce", DOMAIN, "1", **older)
    assert elsewhere.code == 0, elsewhere.stderr
    told = elsewhere.outcome
    assert (told["verdict"], told["bit_equal"], told["same_machine"]) == ("PASS", False, False)
    assert told["apart"] <= told["tolerance"]
    assert "They part at epoch 1" in told["reason"]
    assert "DEFAULT now" in told["reason"]
    tags = load_tags(place, 1)
    assert (tags["verdict"], "test score" in tags) == ("PROMOTE", True)  # held at first


def load_tags(place: Path, version: int) -> dict[str, str]:
    return dict(create_client(place).get_model_version(DOMAIN, str(version)).tags)


def load_evidence(place: Path, version: int) -> set[str]:
    """The hashes of what lies beside the version's run; each file is named by its own."""
    client = create_client(place)
    run_id = client.get_model_version(DOMAIN, str(version)).run_id
    folder = Path(client.download_artifacts(run_id, "gates", str(place)))
    hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert list(hashes.keys()) == list(hashes.values())
    return set(hashes)


def create_client(place: Path) -> Any:
    import mlflow

    uri = f"sqlite:///{place / '.tessera' / 'mlflow' / 'mlflow.db'}"
    return mlflow.MlflowClient(uri, uri)


def test_where_two_trainings_differ_is_reported() -> None:
    from components.promotion.versions import Version

    facts = {"label": "vpt", "seed": 0, "metrics": {}, "trainable_params": 1, "head_params": 1, "share": 0.1}
    more = {"seconds": 1, "adapter_bytes": 1, "adapter_sha256": "a", "split_sha256": "s", "folder": Path()}
    history = tuple({"epoch": float(k), "train/loss": 1 / k} for k in (1, 2))
    machine = {"torch": "2.14", "device": "x86"}
    before = Result(**facts, **more, backbone={"sha256": "b"}, history=history, environment=machine)
    version, workspace = Version(domain="parts", version=1, run_id="", source=""), Workspace(Path())

    def told(**changes: object) -> str:
        return _find_difference(workspace, tiny.create_domain(), version, before, before.model_copy(update=changes))

    assert told(split_sha256="t") == "They part at the split: s then, t now."
    assert told(backbone={"sha256": "c"}) == "They part at the backbone: b then, c now."
    later = (history[0], history[1] | {"train/loss": 0.25})
    assert told(history=later) == "They part at epoch 2: train/loss 0.5 then, 0.25 now."
    elsewhere = told(history=later, environment=machine | {"device": "arm"})
    assert elsewhere.endswith("The machines differ: device x86 then, arm now.")


@pytest.mark.parametrize(
    ("images", "lost", "won", "within"),
    [
        (12, 1, 0, True),  # a single answer of twelve is 0.08
        (12, 10, 0, False),
        (190, 5, 1, True),
        (190, 12, 1, False),  # 0.06
        (5000, 250, 230, True),  # one in ten changed, and as many for the better
        (5000, 60, 10, False),  # 0.01, though all but one in seventy are the same
    ],
)
def test_how_far_scores_may_be_apart_follows_the_images(images: int, lost: int, won: int, within: bool) -> None:
    """lost, won: of how many images the answer went wrong, or right, since; of groups of two images, evenly spread."""
    domain = tiny.create_domain()
    truth = list(islice(cycle(domain.classes), images))
    groups = [f"g{number // 2}" for number in range(images)]
    spread = [number * images // (lost + won) for number in range(lost + won)]
    then, now = (
        tiny.predict(truth, [_answer(label, number in wrong) for number, label in enumerate(truth)], groups)
        for wrong in (set(spread[lost:]), set(spread[:lost]))
    )
    apart, tolerance = measure_difference(domain, then, now)
    assert apart == pytest.approx((lost - won) / images, rel=0.1)
    assert (apart <= tolerance) is within


def test_one_answer_may_always_change() -> None:
    """Of a class of two images, among hundreds of others, it moves the score by far."""
    domain = tiny.create_domain()
    truth = ["red"] * 2 + ["dark", "light"] * 200
    then, now = (tiny.predict(truth, [answer, *truth[1:]], truth) for answer in ("red", "dark"))
    apart, tolerance = measure_difference(domain, then, now)
    assert apart == pytest.approx(tolerance) == pytest.approx(1 / 6)


def _answer(label: str, wrong: bool) -> str:
    return "light" if wrong and label == "red" else "red" if wrong else label
