"""One step of training STFGAN: losses, critics and the state that changes.

Both stages are trained side by side, each with its own loss: no gradient runs between them, so this equals training one
after the other on the same patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from stfgan_xr.errors import Diverged, InputError
from stfgan_xr.predictors.networks import SCALE, Discriminator, crop
from stfgan_xr.predictors.stages import (
    Architecture,
    Middle,
    Network,
    Pair,
    Targets,
    anchor,
    average,
    stage1,
    stage2,
    start,
)

Gan = Literal["wgan-clip", "lsgan", "none"]
GANS: tuple[Gan, ...] = ("wgan-clip", "lsgan", "none")
FLOOR = 1e-4
"""Squared error (in the networks' units) of an image that is as good as noise allows."""
CLIP = 0.01
"""Largest weight of a Wasserstein critic."""
RISE = 50
"""The learning rate is reached after one part in so many of the steps."""
SETTLE = 0.2
"""Last part of the steps: normalisation statistics are held and stage 2 always sees stage-1 results."""


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's where it states them.

    Attributes
    ----------
    gan
        Adversarial part: Wasserstein with clipped weights (the paper's), least squares with spectral norm, or none.
    adversarial
        Weight of the adversarial part beside the mean squared error.
    steps, minutes
        Length: a number of steps, or as many as fit a time (measured at the start).
    batch, patch
        Patches in a step and fine pixels along a patch.
    margin
        Fine pixels around a patch that the network sees and the loss does not.
    samples, region
        Regions held in memory and the fine pixels along one; patches are cut from them.
    optimiser
        ``"rmsprop"`` (the paper's) or ``"adam"``, which starts gently enough for a network that begins at its anchor.
    learning_rate
        Reached over the first fiftieth of the steps.
    decay
        ``"step"`` (the paper's): divided by ten after half of the steps; ``"cosine"``: falling to nothing.
    warm_up
        First part of the steps without the adversarial part.
    span
        Least and greatest number of days between the acquisitions around a target.
    distorted
        Samples are distorted at random (:class:`stfgan_xr.samples.Distortion`), so that weights hold elsewhere.
    subsets
        Some samples lack some bands, and the weights work on any of them.
    average
        Decay of the moving average of the weights, which is what is kept; 0 keeps the last ones.
    patience
        Training ends after so many checks on withheld acquisitions without gain, and the best-checked weights are what
        is kept; 0: it goes on to the end, whatever the checks say.
    seed
        Of everything random.
    """

    gan: Gan = "wgan-clip"
    adversarial: float = 1e-3
    steps: int = 20_000
    minutes: float | None = None
    batch: int = 16
    patch: int = 256
    margin: int = 16
    samples: int = 400
    region: int = 512
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 1e-4
    decay: Literal["step", "cosine"] = "step"
    warm_up: float = 1 / 500
    span: tuple[int, int] = (2, 96)
    distorted: bool = True
    subsets: bool = False
    average: float = 0.998
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.gan not in GANS:
            raise InputError(f"gan {self.gan!r}: choose one of {', '.join(GANS)}")
        if self.optimiser not in ("rmsprop", "adam"):
            raise InputError(f"optimiser {self.optimiser!r}: choose rmsprop or adam")
        if self.decay not in ("step", "cosine"):
            raise InputError(f"decay {self.decay!r}: choose step or cosine")
        if min(self.steps, self.batch, self.patch, self.samples, self.region) < 1 or self.learning_rate <= 0:
            raise InputError("steps, batch, patch, samples, region and the learning rate must be positive")
        if self.patience < 0 or (self.minutes is not None and not self.minutes > 0):
            raise InputError(f"patience {self.patience}, minutes {self.minutes}: out of range")


@dataclass(frozen=True)
class Batch:
    """Patches as tensors: what a prediction sees, and the truth where it is clear."""

    pair: Pair
    targets: Targets
    target: Tensor
    clear: Tensor


class Run:
    """Everything that changes while training: networks, discriminators and their optimisers."""

    def __init__(self, architecture: Architecture, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.network = Network(architecture).to(device)
        spectral = recipe.gan == "lsgan"
        self.critics = torch.nn.ModuleList(
            Discriminator(len(architecture.bands), architecture.width, spectral=spectral) for _ in range(2)
        ).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Statistics of normalisation are averaged like weights; the average follows fast at first.
        self.average = AveragedModel(self.network, multi_avg_fn=self._follow, use_buffers=True)
        self.optimiser = self._optimiser(self.network)
        self.critic_optimiser = self._optimiser(self.critics)
        self.step = 0

    def _follow(self, means: Any, values: Any, count: Any) -> None:
        decay = min(self.recipe.average, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def begin(self, network: Network) -> None:
        """Start from the weights and statistics of a network."""
        for own in (self.network, self.result):
            own.load_state_dict(network.state_dict())

    @property
    def result(self) -> Network:
        """What training has reached: the averaged network."""
        return self.average.module  # type: ignore[return-value]

    def _optimiser(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        if self.recipe.optimiser == "adam":
            return torch.optim.Adam(module.parameters(), self.recipe.learning_rate, betas=(0.9, 0.999))
        return torch.optim.RMSprop(module.parameters(), self.recipe.learning_rate)

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self.network, "average": self.average, "critics": self.critics,
            "optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser,
        }  # fmt: skip

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The whole state as arrays."""
        found: dict[str, npt.NDArray[Any]] = {}
        for name, part in self._parts().items():
            state = part.state_dict()
            flat = (
                state
                if "state" not in state
                else {f"{i}.{k}": v for i, kv in state["state"].items() for k, v in kv.items()}
            )
            found |= {f"{name}.{key}": value.detach().cpu().numpy() for key, value in flat.items()}
        return found

    def restore(self, tensors: Mapping[str, npt.NDArray[Any]], step: int) -> None:
        """The state that :meth:`tensors` gave after ``step`` steps."""
        self.step = step
        for name, part in self._parts().items():
            own = {
                key.removeprefix(name + "."): torch.from_numpy(v)
                for key, v in tensors.items()
                if key.startswith(name + ".")
            }
            if isinstance(part, torch.nn.Module):
                part.load_state_dict(own)
                continue
            state = part.state_dict()
            state["state"] = {}
            for key, value in own.items():
                number, field_name = key.split(".", 1)
                state["state"].setdefault(int(number), {})[field_name] = value
            part.load_state_dict(state)


def masked_mse(result: Tensor, target: Tensor, clear: Tensor) -> Tensor:
    """Mean squared error over usable pixels and all bands, in the networks' units (reflectance times two)."""
    error = ((result - target) * 2).square() * clear
    return error.sum() / clear.sum().clamp(min=1)


def balance(batch: Batch) -> Tensor:
    """Weight ``(n,)`` of each image of a batch, of mean 1: the inverse of its anchor's error.

    A few images with abrupt change have errors many times those of the others and would alone decide every step.
    """
    with torch.no_grad():
        weight = 1 / (_errors(anchor(batch.pair, batch.targets, 0).image, batch.target, batch.clear) + FLOOR)
    return weight / weight.mean()


def balanced_mse(result: Tensor, target: Tensor, clear: Tensor, weight: Tensor) -> Tensor:
    """:func:`masked_mse` with weights ``(n,)`` of the images."""
    return (weight * _errors(result, target, clear)).mean()


def _errors(result: Tensor, target: Tensor, clear: Tensor) -> Tensor:
    """:func:`masked_mse` of each image: ``(n,)``."""
    error = ((result - target) * 2).square() * clear
    return error.sum(dim=(1, 2, 3)) / clear.sum(dim=(1, 2, 3)).clamp(min=1)


def usable(clear: Tensor, step: int) -> Tensor:
    """Where every one of ``step x step`` pixels is clear: ``(n, b, y, x)``."""
    return average(clear.float(), step) == 1


def _true_middle(middle: Middle, batch: Batch) -> Middle:
    """The averaged truth in place of the stage-1 result, where it is known (the paper's training of stage 2)."""
    image, margin = middle.image.clone(), batch.pair.margins.result1 // SCALE
    known = usable(batch.clear, SCALE)
    inner = crop(image, margin)
    inner.copy_(torch.where(known, average(batch.target, SCALE), inner))
    return replace(middle, image=image)


@dataclass(frozen=True)
class Stage:
    """Reflectance of a stage on patches without margin, the truth at its resolution, and where that is clear."""

    result: Tensor
    target: Tensor
    clear: Tensor


def predict(network: Network, batch: Batch, settled: bool) -> tuple[Stage, Stage]:
    """Both stages on patches."""
    architecture = network.architecture
    started, step = start(network, batch.pair), architecture.step
    result, middle = stage1(network, started, batch.targets)
    if architecture.anchor == "none" and not settled:
        middle = _true_middle(middle, batch)
    inner = crop(result, batch.pair.margins.result1 // step)
    return (
        Stage(inner, average(batch.target, step), usable(batch.clear, step)),
        Stage(stage2(network, started, middle), batch.target, batch.clear),
    )


def rmse(batches: Sequence[Batch], image: Callable[[Batch], Tensor]) -> float:
    """Root mean squared error (reflectance) of images over all that is clear in batches; 0 without any."""
    squares = count = 0.0
    with torch.no_grad():
        for batch in batches:
            squares += float(((image(batch) - batch.target).double().square() * batch.clear).sum())
            count += float(batch.clear.sum())
    return math.sqrt(squares / max(count, 1))


def _critic_loss(gan: Gan, fake: Tensor, real: Tensor) -> Tensor:
    if gan == "lsgan":
        return ((real - 1).square().mean() + fake.square().mean()) / 2
    return fake.mean() - real.mean()


def _generator_loss(gan: Gan, fake: Tensor) -> Tensor:
    return (fake - 1).square().mean() / 2 if gan == "lsgan" else -fake.mean()


def _gradient_ratio(adversarial: Tensor, squared: Tensor, output: Tensor) -> float:
    norms = [torch.autograd.grad(loss, output, retain_graph=True)[0].norm() for loss in (adversarial, squared)]
    return float(norms[0] / norms[1].clamp(min=1e-12))


@dataclass(frozen=True)
class Step:
    """What one step needs to know of the whole run."""

    number: int
    total: int
    recipe: Recipe

    @property
    def settled(self) -> bool:
        """Whether statistics are held and stage 2 sees stage-1 results."""
        return self.number >= self.total * (1 - SETTLE)

    @property
    def adversarial(self) -> bool:
        """Whether the adversarial part is on."""
        return self.recipe.gan != "none" and self.number >= self.total * self.recipe.warm_up

    @property
    def learning_rate(self) -> float:
        """Rising at the start, then falling in one step or all the time."""
        done = self.number / self.total
        rise = min(1.0, RISE * (self.number + 1) / self.total)
        fall = (1 + math.cos(math.pi * done)) / 2 if self.recipe.decay == "cosine" else 0.1 if done >= 0.5 else 1.0
        return self.recipe.learning_rate * rise * fall

    @property
    def measured(self) -> bool:
        """Whether the share of the adversarial gradient is measured in this step."""
        return self.number % 50 == 0

    def random(self) -> np.random.Generator:
        """Randomness of this step alone."""
        return np.random.default_rng([self.recipe.seed, self.number])


def _critic_step(run: Run, stage: int, fake: Tensor, real: Tensor) -> float:
    critic = run.critics[stage].requires_grad_()
    loss = _critic_loss(run.recipe.gan, critic(fake), critic(real))
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.item())


def _clip_critics(run: Run) -> None:
    if run.recipe.gan == "wgan-clip":
        with torch.no_grad():
            for parameter in run.critics.parameters():
                parameter.clamp_(-CLIP, CLIP)


def _train_critics(run: Run, stages: Sequence[Stage]) -> dict[str, float]:
    """One step of both critics; what is not clear in the truth shows the prediction instead."""
    losses = {}
    for number, stage in enumerate(stages):
        fake = stage.result.detach()
        real = torch.where(stage.clear, stage.target, fake)
        losses[f"critic_stage{number + 1}"] = _critic_step(run, number, fake * 2 - 1, real * 2 - 1)
    run.critic_optimiser.step()
    _clip_critics(run)
    return losses


def _generator_losses(
    run: Run, step: Step, stages: Sequence[Stage], weight: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    losses, total = {}, torch.zeros((), device=run.device)
    for number, stage in enumerate(stages):
        squared = masked_mse(stage.result, stage.target, stage.clear)
        losses[f"mse_stage{number + 1}"] = squared.item()
        if weight is not None:
            squared = balanced_mse(stage.result, stage.target, stage.clear, weight)
        total = total + squared
        if step.adversarial:
            score = run.critics[number].requires_grad_(False)(stage.result * 2 - 1)
            adversarial = run.recipe.adversarial * _generator_loss(run.recipe.gan, score)
            losses[f"adversarial_stage{number + 1}"] = adversarial.item()
            if step.measured:
                ratio = _gradient_ratio(adversarial, squared, stage.result)
                losses[f"gradient_ratio_stage{number + 1}"] = ratio
            total = total + adversarial
    return total, losses


def train_step(run: Run, step: Step, batch: Batch) -> dict[str, float]:
    """One step of both stages and, once they are on, of their critics; the losses by name."""
    run.network.train(not step.settled)
    for optimiser in (run.optimiser, run.critic_optimiser):
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = step.learning_rate
    losses = {"learning_rate": step.learning_rate, "mse_anchor": _anchor_loss(batch)}
    with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=run.device == "cuda"):
        stages = predict(run.network, batch, step.settled)
        if step.adversarial:
            losses |= _train_critics(run, stages)
        weight = balance(batch) if run.network.architecture.anchor != "none" else None
        total, of_generators = _generator_losses(run, step, stages, weight)
    total.backward()  # type: ignore[no-untyped-call]
    run.optimiser.step()
    run.average.update_parameters(run.network)
    if not math.isfinite(total.item()):
        raise Diverged(f"training diverged in step {step.number}; lower the learning rate")
    return losses | of_generators


def _anchor_loss(batch: Batch) -> float:
    with torch.no_grad():
        return masked_mse(anchor(batch.pair, batch.targets, 0).image, batch.target, batch.clear).item()
