"""JSON schemas of what every reporting command prints with `--json`: the promise to scripts."""

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SHARE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
END: dict[str, Any] = {"type": ["number", "null"], "minimum": -1, "maximum": 1}  # null: not known
VERSION: dict[str, Any] = {"type": ["integer", "null"], "minimum": 1}
BOX: dict[str, Any] = {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
VERDICT: dict[str, Any] = {"enum": ["PROMOTE", "HOLD", "REJECT"]}
MD5: dict[str, Any] = {"type": "string", "pattern": r"^[0-9a-f]{32}\.dir$"}
SHA256: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def record(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has all of these; others may join later."""
    return {"type": "object", "required": list(properties), "properties": properties}


def rows(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": record(**properties)}


CANDIDATES = rows(
    tuner=TEXT,
    seed={"type": "integer"},
    val=SHARE,
    test=record(value=SHARE, low=END, high=END, groups=COUNT),
    calibration=TEXT,
    trainable_params=COUNT,
    head_params=COUNT,
    share={"type": "number", "minimum": 0},
    seconds={"type": "number", "minimum": 0},
    adapter_bytes=COUNT,
    adapter_sha256=SHA256,
    run_id=TEXT,
    selected={"type": "boolean"},
)
TUNERS = rows(
    tuner=TEXT,
    selected={"type": "boolean"},
    seeds={"type": "array", "items": {"type": "integer"}},
    val=SHARE,
    test=record(value=SHARE, low=END, high=END, groups=COUNT, seeds={"type": "array", "items": SHARE}),
    over_linear={
        "anyOf": [
            {"type": "null"},
            record(value={"type": "number"}, low=END, high=END, groups=COUNT, baseline=TEXT, text=TEXT),
        ]
    },
    class_scores={"type": "object", "additionalProperties": SHARE},
    seconds={"type": "number", "minimum": 0},
    trainable_params=COUNT,
    adapter_bytes=COUNT,
    options={"type": "object"},
    search={
        "anyOf": [
            {"type": "null"},
            record(trials=COUNT, seconds={"type": "number"}, seed={"type": "integer"}, options={"type": "object"}),
        ]
    },
)
RECORDS = rows(
    number=COUNT,
    when=TEXT,
    who=TEXT,
    action={"enum": ["promote", "rollback", "judge"]},
    previous=VERSION,
    version=VERSION,
    reason=TEXT,
    data_version=TEXT,
    git_commit=TEXT,
)
NAMED = record(
    name={"type": "string", "pattern": r"^[a-z][a-z0-9_]*@v[0-9]+$"},
    md5=MD5,
    files=COUNT,
    images={"type": ["integer", "null"]},
    classes={"type": ["object", "null"], "additionalProperties": COUNT},
    difference={"oneOf": [{"type": "null"}, record(added=COUNT, removed=COUNT, relabelled=COUNT)]},
    created=TEXT,
    message=TEXT,
)
RETRAIN = record(
    domain=TEXT,
    status={"enum": ["done", "unchanged", "held", "rejected"]},
    data_version=MD5,
    verdict=VERDICT,
    reason=TEXT,
    warnings={"type": "array", "items": TEXT},
    champion_version=VERSION,
    candidates=CANDIDATES,
    tuners=TUNERS,
    backbone=record(name=TEXT, sha256=SHA256, trained={"type": "boolean"}),
    report=TEXT,
)
SCHEMAS: dict[str, dict[str, Any]] = {
    "deploy": record(
        deployed=rows(
            kind={"enum": ["work pool", "deployment", "automation", "domain"]},
            name=TEXT,
            change={"enum": ["created", "changed", "unchanged", "removed", "unreadable"]},
            note=TEXT,
        )
    ),
    "status": record(
        workspace=TEXT,
        mlflow=TEXT,
        prefect={"type": ["string", "null"]},
        pools=rows(name=TEXT, paused={"type": "boolean"}, workers_online={"type": "array", "items": TEXT}),
        domains=rows(
            domain=TEXT,
            data_version={"type": ["string", "null"]},
            data_name={"type": ["string", "null"]},
            files={"type": ["integer", "null"]},
            champion_version=VERSION,
            rolled_back_from=VERSION,
            champion_trouble={"type": ["object", "null"]},
            champion_score={"type": ["object", "null"]},
            drift={"type": ["object", "null"]},
            verdict={"enum": [None, *VERDICT["enum"]]},
            last_run={"type": ["object", "null"]},
            running={"type": ["string", "null"]},
            next_run={"type": ["string", "null"]},
            error={"type": ["object", "null"]},
        ),
    ),
    "down": record(stopped={"type": "boolean"}),
    "demo": record(domain=TEXT, data_version=MD5, files=COUNT, raw=TEXT),
    "import": record(domain=TEXT, layout=TEXT, classes={"type": "array", "items": TEXT}, data_version=MD5, files=COUNT),
    "check": record(
        domain=TEXT,
        ok={"type": "boolean"},
        data_version=MD5,
        images=COUNT,
        quarantined=rows(path=TEXT, reason=TEXT),
        groups=COUNT,
        near_duplicate_pairs=COUNT,
        suspicious_labels=rows(path=TEXT, given=TEXT, suggested=TEXT, score=SHARE, why=TEXT),
        labels={"type": ["object", "null"]},
        aside=rows(path=TEXT, reason=TEXT),
        warnings={"type": "array", "items": TEXT},
        problems={"type": "array", "items": TEXT},
        manifest={"type": ["string", "null"]},
        report=TEXT,
    ),
    "preview": record(domain=TEXT, data_version=MD5, img_size=COUNT, images={"type": "object"}, path=TEXT),
    "export": record(domain=TEXT, format={"enum": ["coco", "csv"]}, folder=TEXT, rows=COUNT, files=COUNT),
    "version": record(domain=TEXT, status={"enum": ["named", "unchanged"]}, version=NAMED),
    "versions": record(domain=TEXT, versions={"type": "array", "items": NAMED}),
    "checkout": record(domain=TEXT, raw=TEXT, version=NAMED),
    "retrain": RETRAIN,
    "compare": {**RETRAIN, "required": [*RETRAIN["required"], "picture"]},
    "promote": record(
        domain=TEXT, verdict=VERDICT, reason=TEXT, warnings={"type": "array"}, champion_version=VERSION, records=RECORDS
    ),
    "rollback": record(domain=TEXT, champion_version=VERSION, records=RECORDS),
    "history": record(domain=TEXT, champion_version=VERSION, records=RECORDS),
    "ledger verify": record(domain=TEXT, records=COUNT, problems=TEXTS, notes=TEXTS),
    "ledger restore": record(domain=TEXT, champion_version=VERSION, found={"type": ["string", "null"]}),
    "ledger export": record(domain=TEXT, records=COUNT, file=TEXT),
    "predict": record(
        domain=TEXT,
        version=VERSION,
        input={"type": ["object", "null"]},
        predictions=rows(
            path=TEXT,
            box=BOX,
            crop=BOX,
            label={"type": ["string", "null"]},
            probabilities={"type": ["object", "null"], "additionalProperties": SHARE},
            model_version=VERSION,
            error={"type": ["object", "null"], "required": ["expected", "found", "hint", "message"]},
        ),
        answered=COUNT,
        failed=COUNT,
        ignored=rows(path=TEXT, reason=TEXT),
        warnings=TEXTS,
    ),
    "doctor": record(ok={"type": "boolean"}, checks=rows(name=TEXT, state=TEXT, found=TEXT, hint=TEXT)),
    "error": record(error=record(type=TEXT, expected=TEXT, found=TEXT, hint=TEXT, message=TEXT)),
}
