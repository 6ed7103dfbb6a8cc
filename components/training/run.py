"""One job from manifest to adapter: all steps of a training process."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from components.data.batches.boxes import load_boxes
from components.data.batches.geometry import Pixels
from components.data.batches.loading import Samples
from components.data.batches.pixels import DECODER, load_maps, load_pixels
from components.data.batches.transforms import Augmentation, require_fit
from components.data.manifest import load_samples
from components.data.sample_keys import name_samples
from components.domain.canvas import Fit, ImgSize
from components.domain.licences import normalise
from components.errors import DataError, Diverged
from components.models.adapter import AdapterMeta, BackboneMeta, InputMeta, load_meta
from components.models.backbones import load_backbone
from components.models.engine import Engine, create_engine
from components.models.extraction import FeatureSource
from components.models.network import Network, create_network
from components.models.process_group import ALONE, ProcessGroup
from components.models.tuners import Tuner, create_tuners
from components.models.weights import load_adapter, save_adapter
from components.records.jobs import SALIENCY_FILE, Job, Result, Rung, write_result, write_rung
from components.tasks import choose_fit, create_task
from components.tasks.base import BoxTask, MapTask
from components.tasks.calibration import Calibration
from components.tasks.decisions import choose_decision, name_rates, require_witnesses
from components.training.asked import Asked
from components.training.boxes import Boxes
from components.training.checkpoint import rank_row, remove_checkpoint
from components.training.evaluate import frame_predictions, hash_split, predict_probabilities
from components.training.fit import fit
from components.training.lower import Keeper, Shelf
from components.training.maps import Maps
from components.training.recipe import Recipe
from components.training.room import Forecast, explaining, find_room, forecast, forecast_others
from components.training.saliency import write_saliency
from components.training.usage import Usage, measure_serving

Tell = Callable[..., None]
Stop = Callable[[], bool]
CHECKPOINT = "checkpoint.safetensors"


def do_job(
    job: Job, tell: Tell, stop: Stop = lambda: False, peers: ProcessGroup = ALONE, started: float | None = None
) -> None:
    """Do the job and leave its files in the folder, result.json last, or those of a rung.

    Raises Stopped soon after `stop` says so. started: when the process was, by the monotonic clock.
    """
    started = started or time.monotonic()
    job.folder.mkdir(parents=True, exist_ok=True)
    # A seed must mean the same bits twice; on a GPU some kernels have no deterministic form, which is warned of.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    manifest = load_samples(job.manifest, job.domain)
    checkpoint = job.folder / CHECKPOINT
    if job.action == "train":
        val = manifest.filter(pl.col("split") == "val")["label"]
        require_witnesses(job.domain.decision, val.to_list(), f"domain {job.domain.name}")
        result = _train(job, manifest, checkpoint, tell, stop, peers, started)
    else:
        result = _score(job, manifest)
    if isinstance(result, Rung):
        write_rung(job.folder, result)
        return
    if result is None:
        return
    write_result(result)
    remove_checkpoint(checkpoint)


def _train(
    job: Job, manifest: pl.DataFrame, checkpoint: Path, tell: Tell, stop: Stop, peers: ProcessGroup, started: float
) -> Result | Rung | None:
    """The result, for the leader of the process group; nothing for the others, whose work ends with the last epoch."""
    network, known, recipe, engine, foreseen = _build(job, tell, peers)
    tuner, task, fit_to = recipe.tuner, recipe.task, choose_fit(job.domain)
    limit = job.domain.validation.max_megapixels
    pixels = load_pixels(manifest, job.raw, known.img_size, job.cache, limit, fit_to)
    augmentation = Augmentation(job.domain.augmentation, job.seed, square=known.img_size.is_square)
    train = _samples(job, manifest, pixels, ["train"], fit_to, augmentation)
    val = _samples(job, manifest, pixels, ["val"], fit_to)
    if peers.leads:
        solved = network.learns_head_only and network.head.solvable  # in one step
        epochs = 1 if solved else job.domain.training.epochs
        tell("start", epochs=epochs, images=len(train), device=str(engine.device))
    usage = Usage()

    def report(row: dict[str, float]) -> None:
        if peers.leads:
            tell("epoch", **row, score=row[f"val/{task.metric}"], **usage.sample())

    content = (manifest["id"].to_list(), manifest["crop"].to_list(), pixels.shape, fit_to, DECODER, known.sha256)
    shelf = Shelf(job.cache, content, lambda text: tell("note", text=text), stop)
    keeper = Keeper(network, tuner, (train, val), job.domain.training.epochs, engine, shelf)
    try:
        with explaining(recipe, foreseen):
            progress = fit(network, *keeper.samples, recipe, engine, checkpoint, report, stop, job.until_epoch)
    except Diverged as error:
        if job.until_epoch is None:
            keeper.close()
            raise
        return _describe_rung(job, {}, started, str(error)) if peers.leads else None
    if job.until_epoch is None:  # a trial of a search goes on, and others read the same
        keeper.close()
    if not peers.leads:
        return None
    if job.until_epoch is not None:
        # The start is the same whatever the learning rate: it would say nothing of the trial.
        return _describe_rung(job, min(progress.history, key=lambda row: rank_row(row, task.metric)), started)
    source = FeatureSource.of(known, fit_to, job.cache)
    metrics, calibration = _write_predictions(job, manifest, pixels, fit_to, network, engine, source)
    metrics |= {key: value for key, value in progress.history[-1].items() if key == "strength"}
    folder = _save_adapter(job, manifest, network, known, tuner, metrics, calibration)
    facts = {"best_epoch": float(progress.best_epoch)}
    seconds = progress.seconds + keeper.seconds
    result = _result(job, manifest, engine, metrics | facts, tuple(progress.history), seconds, folder)
    return result.model_copy(update={"memory": foreseen and foreseen.memory})


def _build(job: Job, tell: Tell, peers: ProcessGroup) -> tuple[Network, BackboneMeta, Recipe, Engine, Forecast | None]:
    """The prepared network, its backbone, how and where it learns, and what memory that takes, which is reported.

    The backbone comes without its weights as they were loaded: they are freed where the network has them in another
    form. Raises TrainingError where the training cannot fit.
    """
    (tuner,) = create_tuners([job.tuner])
    backbone = load_backbone(job.domain.backbone, job.domain.img_size)
    task, fit_to = create_task(job.domain), choose_fit(job.domain)
    require_fit(job.domain.augmentation, backbone.img_size, task.annotation)
    network = create_network(backbone, tuner, len(job.domain.classes), job.seed, task)
    engine = create_engine(backbone.mean, backbone.std, job.domain.training.dtype, peers)
    origin, source = f"{backbone.sha256}, {job.data_version}", FeatureSource.of(backbone, fit_to, job.cache)
    recipe = Recipe(tuner, job.domain.training, job.domain.classes, job.seed, origin, task, source)
    room = find_room(engine.device)
    foreseen = forecast(network, recipe, engine, backbone.img_size, room)
    others = create_tuners(job.beside) if foreseen is not None else []
    both = [foreseen, *forecast_others(backbone, others, recipe, engine, room)]
    if peers.leads and (known := [each for each in both if each is not None]):
        largest = max(known, key=lambda each: each.takes)
        tell("memory", text=largest.describe(), bytes=largest.takes)
    return engine.prepare(network), BackboneMeta.of(backbone), recipe, engine, foreseen


def _save_adapter(
    job: Job,
    manifest: pl.DataFrame,
    network: Network,
    backbone: BackboneMeta,
    tuner: Tuner,
    metrics: dict[str, float],
    calibration: Calibration,
) -> Path:
    """Write the adapter with all that it must say of itself; returns its folder."""
    meta = AdapterMeta.describe(
        network,
        backbone,
        tuner,
        classes=job.domain.classes,
        data_version=job.data_version,
        data_licence=normalise(job.domain.licence) if job.domain.licence.strip() else "",
        split_sha256=hash_split(manifest),
        git_commit=job.git_commit,
        seed=job.seed,
        metrics=metrics,
        calibration=calibration,
        inputs=_describe_input(job, manifest),
        task=create_task(job.domain),
    )
    save_adapter(job.folder / "adapter", network, meta)
    return job.folder / "adapter"


def _describe_input(job: Job, manifest: pl.DataFrame) -> InputMeta:
    """What the samples of the manifest are, so that serving is asked for the same."""
    cut = manifest["crop"].is_not_null()
    return InputMeta(
        kind="crop" if cut.all() else "either" if cut.any() else "picture",
        fit=choose_fit(job.domain),
        cut="square" if job.domain.layout.kind == "instances" else "box",
        max_megapixels=job.domain.validation.max_megapixels,
        min_side=job.domain.validation.min_side,
    )


def _describe_rung(job: Job, row: dict[str, float], started: float, error: str = "") -> Rung:
    return Rung(
        tuner=job.tuner,
        seed=job.seed,
        epochs=job.until_epoch or 0,
        score=row.get(f"val/{create_task(job.domain).metric}", 0.0),
        loss=row.get("val/loss", 0.0),
        seconds=round(time.monotonic() - started, 3),
        error=error,
    )


def _score(job: Job, manifest: pl.DataFrame) -> Result:
    if job.adapter is None:
        raise ValueError("a score job names an adapter")
    meta = load_meta(job.adapter)
    if tuple(meta.classes) != tuple(job.domain.classes):
        raise DataError(
            f"champion {job.adapter}",
            expected=f"the domain's classes {', '.join(job.domain.classes)}",
            found=f"an adapter for {', '.join(meta.classes)}",
            hint="A domain whose classes changed is another domain: give it a new name.",
        )
    network, meta = load_adapter(job.adapter)
    engine = create_engine(tuple(meta.backbone.mean), tuple(meta.backbone.std), job.domain.training.dtype)
    limit = job.domain.validation.max_megapixels
    pixels = load_pixels(manifest, job.raw, meta.backbone.img_size, job.cache, limit, meta.fit)
    costs = measure_serving(engine.prepare(network), engine, meta.backbone.img_size)  # before the batches of scoring
    source = FeatureSource.of(meta.backbone, meta.fit, job.cache)
    metrics, _ = _write_predictions(job, manifest, pixels, meta.fit, network, engine, source, meta.calibrated)
    return _result(job, manifest, engine, metrics | costs, (), 0.0, job.adapter)


def _samples(
    job: Job,
    manifest: pl.DataFrame,
    pixels: Pixels,
    splits: list[str],
    fit_to: Fit,
    augmentation: Augmentation | None = None,
) -> Samples:
    """The samples of these splits. fit_to: how the pixels were made, so that class maps are made alike."""
    rows = np.flatnonzero(manifest["split"].is_in(splits).to_numpy())
    task, chosen = create_task(job.domain), manifest[rows]
    if isinstance(task, MapTask):
        targets: NDArray[Any] = load_maps(chosen, ImgSize.of(pixels.shape[1:3]), fit_to, job.cache)
    elif isinstance(task, BoxTask):
        targets = load_boxes(chosen, ImgSize.of(pixels.shape[1:3]), fit_to, job.domain.classes)
    else:
        targets = task.targets(chosen, job.domain.classes)
    return Samples(pixels, rows, targets, augmentation, chosen["group"].to_numpy(), name_samples(chosen))


def _write_predictions(
    job: Job,
    manifest: pl.DataFrame,
    pixels: Pixels,
    fit_to: Fit,
    network: Network,
    engine: Engine,
    source: FeatureSource,
    calibration: Calibration | None = None,
) -> tuple[dict[str, float], Calibration]:
    """Predict the held-out splits and write them, calibrated; returns their metrics as `<split>/<metric>`, and the
    calibration, found on validation where none is given. `loss` is that of the training, before it."""
    task, classes = create_task(job.domain), job.domain.classes
    held_out = _samples(job, manifest, pixels, ["val", "test"], fit_to)
    rows = manifest[held_out.rows]
    about = (held_out, rows, job.domain, fit_to, job.domain.training.batch_size)
    if isinstance(task, MapTask):
        return _write_judged(job, Maps(network, engine, task, *about), calibration)
    if isinstance(task, BoxTask):
        return _write_judged(job, Boxes(network, engine, task, *about), calibration)
    plain = predict_probabilities(network, held_out, engine, job.domain.training.batch_size * 2, source)
    if calibration is None:
        seen = (rows["split"] == "val").to_numpy()
        groups = rows["group"].to_numpy()[seen]
        calibration = task.calibrate(held_out.targets[seen], plain[seen], groups, classes)
        calibrated = task.rescale(plain[seen], calibration.temperature)
        calibration = choose_decision(
            calibration, job.domain.decision, held_out.targets[seen], calibrated, groups, classes
        )
    probabilities = task.rescale(plain, calibration.temperature)
    frame = frame_predictions(rows, probabilities, job.domain, calibration)
    frame.write_parquet(job.folder / "predictions.parquet")
    if job.action == "train":
        write_saliency(job.folder, frame, task, held_out, network, engine)
    metrics: dict[str, float] = {}
    for split in ("val", "test"):
        mask = (rows["split"] == split).to_numpy()
        targets = held_out.targets[mask]
        scores = task.metrics(targets, probabilities[mask], classes, calibration)
        scores["ece_uncalibrated"] = task.calibration_error(targets, plain[mask])
        scores["loss"] = float(task.surprise(targets, plain[mask]).mean())
        if calibration.decision is not None:
            names = rows["group"].to_numpy()[mask]
            scores |= name_rates(targets, probabilities[mask], names, classes, calibration.decision)
        metrics |= {f"{split}/{name}": value for name, value in scores.items()}
    return metrics, calibration


def _write_judged(
    job: Job, answers: Asked[Any], calibration: Calibration | None
) -> tuple[dict[str, float], Calibration]:
    """The same for answers that are class maps or boxes. They have no saliency: an answer itself says where it is."""
    task, calibration = answers.task, calibration or answers.calibrate()
    frame = answers.judge(calibration)
    frame.write_parquet(job.folder / "predictions.parquet")
    if job.action == "train":
        save_file({}, job.folder / SALIENCY_FILE)
    parts = {split: frame.filter(pl.col("split") == split) for split in ("val", "test")}
    scores = {split: task.score_frame(part, job.domain.classes) for split, part in parts.items()}
    return {f"{split}/{name}": value for split, found in scores.items() for name, value in found.items()}, calibration


def _result(
    job: Job,
    manifest: pl.DataFrame,
    engine: Engine,
    metrics: dict[str, float],
    history: tuple[dict[str, float], ...],
    seconds: float,
    adapter: Path,
) -> Result:
    meta = load_meta(adapter)
    return Result(
        label=meta.label,
        seed=meta.seed,
        metrics=metrics,
        history=history,
        trainable_params=meta.trainable_params,
        head_params=meta.head_params,
        share=meta.share,
        seconds=round(seconds, 3),
        adapter_bytes=(adapter / "adapter.safetensors").stat().st_size,
        adapter_sha256=meta.adapter_sha256,
        split_sha256=hash_split(manifest),
        backbone=meta.backbone.model_dump(mode="json"),
        calibration=meta.calibration,
        environment=_environment(engine),
        folder=job.folder,
    )


def _environment(engine: Engine) -> dict[str, str]:
    """What could change the bits: the record of where this was computed."""
    gpu = torch.cuda.get_device_name() if engine.device.type == "cuda" else ""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "numpy", "albumentations")},
        "device": gpu or _name_cpu(),
        "devices": str(engine.peers.size),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "attention": "fused" if engine.fused_attention else "plain",
        "threads": str(torch.get_num_threads()),
    }


def _name_cpu() -> str:
    """Model and instruction set: with either the last bits may change."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    model = next(names, platform.processor() or platform.machine())
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"
