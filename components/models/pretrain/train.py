"""The run that makes the embedded backbone: images, teacher, student, one resumable loop.

The state is one safetensors file beside the result, replaced whole. A batch and its random choices follow from
(seed, step), so a run that was killed and started again computes the same bits on the same machine.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.errors import BackboneError
from components.files import flush, whole_file
from components.models.backbones import load_backbone
from components.models.pretrain.distil import (
    Student,
    cut_patches,
    distillation_loss,
    hidden_states,
    measure_targets,
    measure_whitening,
    resample_patches,
    use_plain_attention,
)
from components.models.pretrain.images import Images
from components.models.pretrain.muon import Muon

Tensors = dict[str, Tensor]
MUON_LR, ADAMW_LR, EMA = 0.012, 4e-3, 0.998
WARMUP_STEPS, CLIP, FORCED_SHARE = 100, 1.0, 0.12
# Enlarged images make a better teacher (linear probe and kNN on lc25000_lung: 92.1 and 89.1 at 128 px, 93.8 and 92.4
# at 192) but a harder one to begin with: 8,000 images take its student to 51 and 23 on magnetic_tile, not 61 and 33.
OWN_SIZE_SHARE = 0.4
STATISTICS_BATCHES = 16


@dataclass(frozen=True)
class Settings:
    """What decides the result, beside the teacher.

    img_size: of the images and the student. teacher_size: to which they are enlarged for the teacher, once the
    student follows it at its own size. pool: textures from which images are cut.
    """

    images: int = 288_000
    seed: int = 0
    batch_size: int = 48
    img_size: int = 128
    teacher_size: int = 192
    pool: int = 1024

    @property
    def steps(self) -> int:
        return math.ceil(self.images / self.batch_size)


class Run:
    """Student, its moving average, optimizers, and the step they are at."""

    def __init__(self, teacher: Path, settings: Settings) -> None:
        self.settings, self.step = settings, 0
        self.teacher = load_backbone(str(teacher), settings.img_size)
        self.larger_teacher = load_backbone(str(teacher), settings.teacher_size)
        for backbone in (self.teacher, self.larger_teacher):
            use_plain_attention(backbone.vit)
        self.images = Images(settings.seed, settings.img_size, settings.pool)
        self._measure()
        with torch.no_grad():
            self.student.vit.norm.bias.copy_(self.targets.bias)
        self.learned = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.learned.items()}
        self.muon = Muon(p for name, p in self.learned.items() if is_block_matrix(name, p))
        groups = [{"params": [p], "scale": learning_scale(name, p)} for name, p in self._others()]
        self.adamw = torch.optim.AdamW(groups, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0)

    def train_step(self) -> tuple[float, float]:
        """One batch; the loss and its part for the final features."""
        images = self.load_images(self.step)
        enlarged = self.step >= OWN_SIZE_SHARE * self.settings.steps
        states, targets = self.teach(images, enlarged), self.larger_targets if enlarged else self.targets
        with torch.autocast("cpu", torch.bfloat16):
            loss, final = distillation_loss(self.student(images, states, self._forced()), states, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learned.values(), CLIP)
        factor = learning_rate(self.step, self.settings.steps)
        for group in self.adamw.param_groups:
            group["lr"] = ADAMW_LR * factor * group["scale"]
        self.adamw.step()
        self.muon.step(MUON_LR * factor)
        self.adamw.zero_grad()
        self.student.zero_grad()
        self.step += 1
        keep = min(EMA, self.step / (10 + self.step))  # at the start the average must forget its random numbers
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.learned.values()], 1 - keep)
        return float(loss.detach()), float(final)

    def load_images(self, step: int) -> Tensor:
        """The images of a step as the teacher wants them, (B, 3, H, W) float32."""
        pixels = torch.from_numpy(self.images.create_batch(step, self.settings.batch_size))
        mean, std = torch.tensor(self.teacher.mean), torch.tensor(self.teacher.std)
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def teach(self, images: Tensor, enlarged: bool) -> list[Tensor]:
        """The teacher's hidden states for these images, on the student's grid."""
        vit = (self.larger_teacher if enlarged else self.teacher).vit
        if enlarged:
            images = F.interpolate(images, [self.settings.teacher_size] * 2, mode="bicubic", antialias=True)
        with torch.autocast("cpu", torch.bfloat16):
            states = hidden_states(vit, images)
        grid: tuple[int, int] = self.teacher.vit.patch_embed.grid_size
        return [resample_patches(state, vit.patch_embed.grid_size, grid) for state in states]

    def create_weights(self) -> Tensors:
        """The moving average as a plain ViT in float16, whitening folded in."""
        learned = {name: p.detach().clone() for name, p in self.learned.items()}
        self._set_learned(self.average)
        weights = {name: tensor.half() for name, tensor in self.student.fold().items()}
        self._set_learned(learned)
        return weights

    def state(self) -> Tensors:
        """Everything the next step depends on."""
        tensors = {f"learned.{name}": p.detach() for name, p in self.learned.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"muon.{i}": momentum for i, momentum in enumerate(self.muon.momenta)}
        for index, slots in self.adamw.state_dict()["state"].items():
            tensors |= {f"adamw.{index}.{key}": value for key, value in slots.items()}
        return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}

    def restore(self, tensors: Tensors, step: int) -> None:
        """The inverse of `state`."""
        self._set_learned({name: tensors[f"learned.{name}"] for name in self.learned})
        self.average = {name: tensors[f"average.{name}"] for name in self.learned}
        for index, momentum in enumerate(self.muon.momenta):
            momentum.copy_(tensors[f"muon.{index}"])
        slots: dict[int, Tensors] = {}
        for name, tensor in tensors.items():
            if name.startswith("adamw."):
                _, number, key = name.split(".")
                slots.setdefault(int(number), {})[key] = tensor
        self.adamw.load_state_dict({"state": slots, "param_groups": self.adamw.state_dict()["param_groups"]})
        self.step = step

    def _measure(self) -> None:
        """Scales of both teachers' states and the whitening, hence the student, from the first images."""
        batches = [self.load_images(step) for step in range(min(STATISTICS_BATCHES, self.settings.steps))]
        self.targets = measure_targets([self.teach(images, enlarged=False) for images in batches])
        self.larger_targets = measure_targets([self.teach(images, enlarged=True) for images in batches])
        patch = self.teacher.vit.patch_embed.patch_size[0]
        whitening = measure_whitening([cut_patches(images, patch) for images in batches])
        self.student = Student(self.teacher.vit, *whitening, self.settings.seed)

    def _forced(self) -> Tensor | None:
        """Which blocks of which images are fed the teacher's state, (blocks, B); None once that is over."""
        chance = 1 - self.step / (FORCED_SHARE * self.settings.steps)
        if chance <= 0:
            return None
        random = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        return torch.rand(len(self.teacher.vit.blocks), self.settings.batch_size, generator=random) < chance

    def _others(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.learned.items() if not is_block_matrix(name, p)]

    @torch.no_grad()
    def _set_learned(self, tensors: Tensors) -> None:
        for name, parameter in self.learned.items():
            parameter.copy_(tensors[name])


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate: up over the warm-up, then down in a straight line to zero."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / max(steps - WARMUP_STEPS, 1), 1.0)


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    return name.startswith("vit.blocks.") and parameter.ndim == 2


def learning_scale(name: str, parameter: Tensor) -> float:
    """Positions and class token learn five times, norms and biases twice as fast as AdamW's rate.

    The patch projection learns slower: its inputs are many and of unit variance, so that at the full rate one
    step's noise in 768 weights moves the embedding by a fifth of its spread, and no block ever sees it still.
    """
    if name == "projection":
        return 0.25
    if name in ("vit.pos_embed", "vit.cls_token"):
        return 5.0
    return 2.0 if parameter.ndim == 1 else 1.0


def pretrain(
    teacher: Path,
    out: Path,
    settings: Settings,
    *,
    save_seconds: float = 120.0,
    progress: Callable[[int, int, float, float], None] | None = None,
) -> None:
    """Distil the teacher into `out`; an interrupted run goes on from `checkpoint_path(out)`.

    progress(step, steps, loss, final loss) is called after each step. With other `images` than before, the run
    goes on from its step and ends where the new number says. Raises BackboneError when `out` exists.
    """
    if out.exists():
        raise BackboneError(f"pretraining {out}", expected="no such file", found="one", hint="Choose another --out.")
    run = Run(teacher, settings)
    load_checkpoint(checkpoint_path(out), run)
    saved = time.monotonic()
    while run.step < settings.steps:
        loss, final = run.train_step()
        if not math.isfinite(loss):
            raise BackboneError(f"pretraining {out}", expected="a finite loss", found=f"{loss} at step {run.step}",
                                hint="Choose another --seed.")  # fmt: skip
        if progress:
            progress(run.step, settings.steps, loss, final)
        if time.monotonic() - saved >= save_seconds:
            save_checkpoint(checkpoint_path(out), run)
            saved = time.monotonic()
    save_weights(run, out)
    checkpoint_path(out).unlink(missing_ok=True)


def snapshot(teacher: Path, out: Path, checkpoint: Path, settings: Settings) -> int:
    """Write the moving average of an unfinished run's checkpoint to `out`; the step it stands at."""
    run = Run(teacher, settings)
    load_checkpoint(checkpoint, run)
    save_weights(run, out)
    return run.step


def save_weights(run: Run, out: Path) -> None:
    """The result as `load_backbone` reads it: plain names, float16, and what it is in the metadata."""
    config: Any = run.teacher.vit.pretrained_cfg
    facts = {
        "architecture": str(config["architecture"] if isinstance(config, dict) else config.architecture),
        "mean": json.dumps(list(run.teacher.mean)),
        "std": json.dumps(list(run.teacher.std)),
        "licence": run.teacher.licence,
        "trained": "true",
    }
    _replace(out, run.create_weights(), facts)


def checkpoint_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def save_checkpoint(path: Path, run: Run) -> None:
    _replace(path, run.state(), {"facts": json.dumps(_facts(run) | {"step": run.step})})


def load_checkpoint(path: Path, run: Run) -> None:
    """Put the run where its checkpoint says, if there is one. Raises BackboneError for one of another run."""
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise BackboneError(f"checkpoint {path}", expected="a whole file", found=str(error),
                            hint="Remove it to start again.") from None  # fmt: skip
    step = facts.pop("step")
    if facts != _facts(run):
        raise BackboneError(f"checkpoint {path}", expected=str(_facts(run)), found=str(facts),
                            hint="Start with the options it was made with, or choose another --out.")  # fmt: skip
    run.restore(tensors, step)


def _facts(run: Run) -> dict[str, Any]:
    """What a checkpoint must agree with; the number of images may change."""
    facts = asdict(run.settings) | {"teacher": run.teacher.sha256}
    del facts["images"]
    return facts


def _replace(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """A kill leaves the old file or the new one."""
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata)
        flush(partial)
