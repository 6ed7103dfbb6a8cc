"""The command line as a script sees it: quick help, exit codes, one JSON object, and errors instead of tracebacks."""

import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DOMAIN, Record, clean_environment, create_workspace, run_tessera
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from components.errors import DataError
from components.records.fields import ErrorRecord, Refused
from components.records.images import Checked, LeftOut, Pictures, Summary, Suspect
from components.records.operations import Diagnosis, DomainRow, Drift, Ended, Status
from components.records.outcomes import Score
from components.records.predictions import Answer, Predictions
from components.workspace import REPOSITORY
from flows.commands import answers, app, console

Spoil = Callable[[Path], None] | None
HEAVY = ("torch", "timm", "mlflow", "prefect", "polars", "pandera", "albumentations", "numpy", "dvc", "pydantic")


def test_help_loads_nothing_heavy() -> None:
    """Help in under half a second follows from what is not imported."""
    code = f"import sys, flows.commands.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_plans_and_gates_never_load_torch() -> None:
    code = "import sys, flows.plan, flows.retrain, flows.promote; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "False False"


@pytest.mark.parametrize(
    "command", [name for name, found in get_command(app.app).commands.items() if not hasattr(found, "commands")]
)
def test_every_command_has_help(command: str) -> None:
    answer = CliRunner().invoke(app.app, [command, "--help"])
    assert answer.exit_code == 0
    assert "--workspace" in answer.stdout


def _no_raw(place: Path) -> None:
    raw = place / "data" / DOMAIN / "raw"
    raw.rename(place / "elsewhere")


def _typo(place: Path) -> None:
    _change(place, "trainig: {}\n")


def _typo_in_candidate(place: Path) -> None:
    _change(place, "candidates: [{kind: vpt, prompts: 3}]\n")


def _unknown_tuner(place: Path) -> None:
    _change(place, "candidates: [vtp]\n")


def _unknown_backbone(place: Path) -> None:
    _change(place, "backbone: vit_tinny_patch16_224\n")


def _missing_weights(place: Path) -> None:
    _change(place, "backbone: weights/none.safetensors\n")


def _unknown_task(place: Path) -> None:
    _change(place, "task: clasification")


def _one_class(place: Path) -> None:
    _change(place, "classes: [crack]")


def _lost_git(place: Path) -> None:
    (place / ".dvc").mkdir()
    (place / ".dvc" / "config").write_text("[core]\n    remote = local\n")


def _change(place: Path, line: str) -> None:
    path = place / "data" / DOMAIN / "domain.yaml"
    facts = yaml.safe_load(path.read_text()) | yaml.safe_load(line)
    path.write_text(yaml.safe_dump(facts, sort_keys=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "command", "words"),
    [
        (_no_raw, ["check", DOMAIN], ("tessera import",)),
        (_typo, ["check", DOMAIN], ("trainig", "training")),
        (_typo_in_candidate, ["retrain", DOMAIN], ("prompts", "num_prompts")),
        (_unknown_tuner, ["retrain", DOMAIN], ("vtp", "vpt")),
        (_lost_git, ["check", DOMAIN], ("git init",)),
        (None, ["check", "partz"], ("parts",)),
        (None, ["retrain", DOMAIN, "--set", "training.epoch=3"], ("epochs",)),
        (_unknown_task, ["retrain", DOMAIN], ("clasification", "Did you mean 'classification'")),
        (_one_class, ["check", DOMAIN], ("at least 2 classes", "found crack")),
        (None, ["history", "partz"], ("parts",)),
        (None, ["compare", DOMAIN], ("tessera retrain parts",)),
        (None, ["promote", DOMAIN], ("tessera retrain parts",)),
        (None, ["rollback", DOMAIN], ("previous",)),
        (None, ["predict", DOMAIN, "none.jpg"], ("none.jpg",)),
        (None, ["predict", DOMAIN, str(REPOSITORY / "README.md")], ("champion",)),
        (None, ["import", "nowhere", "--domain", "new"], ("nowhere",)),
        (None, ["import", str(REPOSITORY / "flows"), "--domain", "new"], ("layout",)),
    ],
)
def test_bad_usage_is_one_paragraph(workspace: Path, spoil: Spoil, command: list[str], words: tuple[str, ...]) -> None:
    if spoil:
        spoil(workspace)
    answer = run_tessera(workspace, *command)
    assert answer.code == 2, answer.stderr
    answer.read(Refused)
    assert all(word in answer.stderr for word in words), answer.stderr
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_backbone_that_is_not_named_is_reported_in_one_line(workspace: Path) -> None:
    _change(workspace, "backbone: auto\n")
    answer = run_tessera(workspace, "check", DOMAIN)
    assert answer.code == 0
    line = "No backbone is named and the hub is out of reach (HF_HUB_OFFLINE is set): the embedded one."
    assert [text for text in answer.stderr.splitlines() if "backbone" in text] == [line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_unknown_backbone, ("vit_tinny", "vit_tiny")), (_missing_weights, ("none.safetensors",))],
)
def test_errors_of_the_training_process_come_out_as_themselves(
    workspace: Path, spoil: Spoil, words: tuple[str, ...]
) -> None:
    spoil(workspace)
    answer = run_tessera(workspace, "retrain", DOMAIN)
    assert answer.code == 2, answer.stderr
    assert answer.outcome["error"]["type"] == "BackboneError"
    assert all(word in answer.stderr for word in words), answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_a_check_that_says_no_exits_with_one(workspace: Path) -> None:
    _change(workspace, "validation: {min_images_per_class: 50}\n")
    answer = run_tessera(workspace, "check", DOMAIN)
    assert answer.code == 1
    answer.read(Checked)
    assert not answer.outcome["ok"]
    assert "50" in answer.outcome["problems"][0]
    assert Path(answer.outcome["report"]).exists()


def test_a_disk_without_room_is_reported(tmp_path: Path, images: Path) -> None:
    """A process that may not write a byte meets the same error as a full disk."""
    place = create_workspace(tmp_path / "workspace", images)
    done = subprocess.run(
        [sys.executable, "-m", "flows.commands.cli", "check", DOMAIN, "--workspace", str(place)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert done.returncode == 2, done.stderr
    assert "--workspace DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_workspace_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    answer = run_tessera(tmp_path / "file" / "workspace", "check", DOMAIN)
    assert answer.code == 2
    assert answer.outcome["error"]["type"] == "WorkspaceError"


@pytest.mark.slow
def test_a_domain_that_cannot_be_read_hides_no_other(workspace: Path) -> None:
    """Its row says why, in `status` and in `doctor`; the other domain's row is there as ever."""
    assert run_tessera(workspace, "check", DOMAIN).code == 0
    for name, text in {"typo": "name: typo\ntask: classification\n", "torn": "name: [torn"}.items():
        (workspace / "data" / name).mkdir()
        (workspace / "data" / name / "domain.yaml").write_text(text)
        (workspace / "data" / name / "raw.dvc").write_text("")
    _copy_domain(workspace, "lost")  # its domain.yaml is fine, its pointer is not
    answer = run_tessera(workspace, "status")
    assert answer.code == 0, answer.stderr
    answer.read(Status)
    errors = {row["domain"]: row["error"] and row["error"]["message"] for row in answer.outcome["domains"]}
    assert errors[DOMAIN] is None
    assert "'classes'" in errors["typo"]
    assert "legal YAML" in errors["torn"]
    assert "raw.dvc" in errors["lost"]
    answer = run_tessera(workspace, "doctor")
    (found,) = [check for check in answer.outcome["checks"] if check["name"] == "domains"]
    assert found["state"] == "error"
    assert "'classes'" in found["found"]
    assert "legal YAML" in found["found"]


def _copy_domain(place: Path, name: str) -> None:
    facts = yaml.safe_load((place / "data" / DOMAIN / "domain.yaml").read_text())
    (place / "data" / name).mkdir()
    (place / "data" / name / "domain.yaml").write_text(yaml.safe_dump(facts | {"name": name}))
    (place / "data" / name / "raw.dvc").write_text("outs: []\n")


def test_the_version_of_the_code_is_reported() -> None:
    answer = CliRunner().invoke(app.app, ["--version"])
    assert answer.exit_code == 0
    assert re.match(r"tessera \d+\.\d+\.\d+ \(commit ", answer.stdout)


def _show(show: Callable[[Record], None], record: Record, monkeypatch: pytest.MonkeyPatch) -> str:
    screen = Console(width=80, record=True, file=io.StringIO())
    for module in (answers, console):
        monkeypatch.setattr(module, "OUT", screen)
    show(record)
    return screen.export_text()


def test_one_reason_of_many_pictures_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of which a table names the boxes of one picture alone."""
    errors = [DataError(f"{n}.jpg", expected="boxes of it in b.csv", found="none", hint="Add them.") for n in range(3)]
    errors.append(DataError("x.jpg", expected="an image", found="an empty file", hint="Copy it again."))
    facts: dict[str, Any] = {"crop": None, "model_version": 1}
    none = facts | {"box": None, "label": None, "probabilities": None}
    row = facts | {"path": "a.jpg", "box": (1, 2, 30, 40), "label": "crack", "probabilities": {"crack": 0.9}}
    rows = [Answer(**row, error=None)]
    rows += [Answer(**none, path=error.what, error=ErrorRecord.of(error)) for error in errors]
    predictions = Predictions(
        domain="tiles",
        version=1,
        tuner="linear",
        thresholds=None,
        input=None,
        predictions=tuple(rows),
        answered=1,
        failed=4,
        ignored=(LeftOut(path="gone.jpg", reason="named in b.csv alone"),),
        notes={},
        warnings=(),
    )
    text = _show(answers.show_predictions, predictions, monkeypatch)
    assert [text.count(words) for words in ("boxes of it in b.csv", "an empty file")] == [1, 1]
    for words in ("0.jpg: expected", "The same for 2 more.", "Answered 1 of 5", "ignored 1 file: gone.jpg"):
        assert words in text


def test_a_check_of_crops_counts_crops_and_says_which_one_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"given": "pit", "suggested": "crack", "score": 0.1, "why": "as that class"}
    suspect = Suspect(path="a.jpg", crop=(1, 2, 30, 40), **facts)
    summary = Summary(
        layout="voc",
        task="classification",
        classes={"pit": 9},
        unlabelled=0,
        samples=9,
        cut=True,
        group=None,
        groups=1,
        examples=(),
    )
    outcome = Checked(
        **dict.fromkeys(("problems", "quarantined", "aside", "warnings", "hints", "classes"), ()),
        domain="tiles",
        ok=True,
        data_version="0" * 32 + ".dir",
        fit=9,
        images=9,
        groups=1,
        near_duplicate_pairs=2,
        splits={},
        suspicious_labels=(suspect,),
        labels=None,
        notes={},
        given_split={},
        pictures=Pictures(found=2, used=2, masks=0, quarantined=0, ignored=()),
        manifest=None,
        report=Path("r.html"),
        understood=summary,
    )
    text = _show(console.show_check, outcome, monkeypatch)
    assert "9 of 9 crops may be used, in 1 group; 2 near-duplicate pairs" in text
    assert "a.jpg at 1 2 30 40: pit, rather crack" in text


def _status(*rows: DomainRow) -> Status:
    return Status(workspace=Path("w"), mlflow="m", prefect=None, pools=(), domains=rows)


def test_status_without_domains_says_how_to_get_one() -> None:
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(console.draw_status(_status()))
    assert "tessera import FOLDER --domain NAME" in screen.export_text()


def test_status_fits_80_columns() -> None:
    """The longest row there is: a rolled back champion of older data, drift, a verdict, a run and a schedule."""
    soon = (datetime.now(UTC) + timedelta(days=4)).isoformat()
    row = DomainRow(
        domain="surface_defects",
        data_name="surface_defects@v12",
        data_version=32 * "a",
        files=48_000,
        champion_version=12,
        champion_data=32 * "b",
        rolled_back_from=13,
        verdict="PROMOTE",
        champion_score=Score(value=0.827, low=0.74, high=0.9),
        drift=Drift(share=0.05, new=1_200, images=1_200, expected=0.05, classes={}),
        last_run=Ended(state="Completed", when=soon),
        next_run=soon,
    )
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(console.draw_status(_status(row)))
    text = screen.export_text()
    for words in ("surface_defects", "v12", "48,000 files", "version 12 old data", "0.827 [0.74 0.90]", "PROMOTE"):
        assert words in text
    for words in ("rolled back from 13", "1,200 new", "Completed", "in 4 d"):
        assert words in text
    assert "…" not in text


@pytest.mark.slow
def test_a_version_that_is_not_there_costs_no_server(workspace: Path) -> None:
    answer = run_tessera(workspace, "promote", DOMAIN, "7")
    assert answer.code == 2
    assert "version 7: expected a registered version" in answer.stderr
    assert not (workspace / ".tessera" / "logs" / "prefect-embedded.log").exists()


@pytest.mark.slow
def test_doctor_reports(workspace: Path) -> None:
    answer = run_tessera(workspace, "doctor")
    answer.read(Diagnosis)
    assert answer.code == 0, answer.stdout
    assert json.loads(answer.stdout) == answer.outcome
