"""One step of training, the same for all methods: the recipe, critics, and the state that changes.

What differs is a :class:`stfgan_xr.predictors.learned.Method`: networks, and the terms of their loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from stfgan_xr.errors import Diverged, InputError
from stfgan_xr.predictors.learned import Method, Term, masked_mse
from stfgan_xr.predictors.pairs import Batch

Gan = Literal["wgan-clip", "lsgan", "none"]
GANS: tuple[Gan, ...] = ("wgan-clip", "lsgan", "none")
CLIP = 0.01
"""Largest weight of a Wasserstein critic."""
RISE = 50
"""The learning rate is reached after one part in so many of the steps."""
SETTLE = 0.2
"""Last part of the steps: normalisation statistics are held, and stage 2 of STFGAN always sees stage-1 results."""


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
    trust
        Part of what anchored networks correct from day to day that counts in the end. Under the squared error it is
        what they would learn with a penalty of ``1 / trust - 1`` on its square: for land that differs from what they
        learnt from, where corrections fail more often.
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
    trust: float = 1.0
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
        if not 0 < self.trust <= 1:
            raise InputError(f"trust {self.trust}: it must lie between 0 and 1")
        if self.patience < 0 or (self.minutes is not None and not self.minutes > 0):
            raise InputError(f"patience {self.patience}, minutes {self.minutes}: out of range")


class Run:
    """Everything that changes while training: networks, critics and their optimisers."""

    def __init__(self, method: Method, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.method, self.recipe, self.device = method, recipe, device
        self.network = method.network().to(device)
        self.critics = torch.nn.ModuleList(method.critics(recipe.gan == "lsgan")).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Statistics of normalisation are averaged like weights; the average follows fast at first.
        self.average = AveragedModel(self.network, multi_avg_fn=self._follow, use_buffers=True)
        self.optimiser = self._optimiser(self.network)
        self.critic_optimiser = self._optimiser(self.critics) if len(self.critics) else None
        self.step = 0

    def _follow(self, means: Any, values: Any, count: Any) -> None:
        decay = min(self.recipe.average, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def begin(self, network: torch.nn.Module) -> None:
        """Start from the weights and statistics of a network."""
        for own in (self.network, self.result):
            own.load_state_dict(network.state_dict())

    @property
    def result(self) -> torch.nn.Module:
        """What training has reached: the averaged network."""
        return self.average.module

    def _optimiser(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        if self.recipe.optimiser == "adam":
            return torch.optim.Adam(module.parameters(), self.recipe.learning_rate, betas=(0.9, 0.999))
        return torch.optim.RMSprop(module.parameters(), self.recipe.learning_rate)

    @property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        """That of the networks, and that of their critics if there are any."""
        return [self.optimiser] if self.critic_optimiser is None else [self.optimiser, self.critic_optimiser]

    def _parts(self) -> dict[str, Any]:
        names = ("optimiser", "critic_optimiser")
        parts = {"network": self.network, "average": self.average, "critics": self.critics}
        return parts | dict(zip(names, self.optimisers, strict=False))

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


def _gradient_ratio(adversarial: Tensor, content: Tensor, output: Tensor) -> float:
    norms = [torch.autograd.grad(loss, output, retain_graph=True)[0].norm() for loss in (adversarial, content)]
    return float(norms[0] / norms[1].clamp(min=1e-12))


@dataclass(frozen=True)
class Step:
    """What one step needs to know of the whole run."""

    number: int
    total: int
    recipe: Recipe

    @property
    def settled(self) -> bool:
        """Whether statistics are held; see :data:`SETTLE`."""
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


def _clip_critics(run: Run) -> None:
    if run.recipe.gan == "wgan-clip":
        with torch.no_grad():
            for parameter in run.critics.parameters():
                parameter.clamp_(-CLIP, CLIP)


def _judged(terms: Sequence[Term]) -> Iterator[tuple[int, Term, Tensor, Tensor]]:
    """Terms that critics see, counted, with the results and truths."""
    seen = [(term, term.result, term.truth) for term in terms if term.result is not None and term.truth is not None]
    for number, (term, result, truth) in enumerate(seen):
        yield number, term, result, truth


def _train_critics(run: Run, terms: Sequence[Term]) -> dict[str, float]:
    """One step of the critics."""
    losses = {}
    for number, term, result, truth in _judged(terms):
        critic = run.critics[number].requires_grad_()
        loss = _critic_loss(run.recipe.gan, critic(term.seen(result.detach())), critic(term.seen(truth)))
        loss.backward()  # type: ignore[no-untyped-call]
        losses[f"critic_stage{number + 1}"] = loss.item()
    run.optimisers[-1].step()
    _clip_critics(run)
    return losses


def _adversarial(run: Run, step: Step, terms: Sequence[Term], content: Tensor) -> tuple[Tensor, dict[str, float]]:
    """What critics add to the rest of the loss."""
    losses, total = {}, torch.zeros((), device=run.device)
    for number, term, result, _ in _judged(terms):
        score = run.critics[number].requires_grad_(False)(term.seen(result))
        adversarial = run.recipe.adversarial * _generator_loss(run.recipe.gan, score)
        losses[f"adversarial_stage{number + 1}"] = adversarial.item()
        if step.measured:
            losses[f"gradient_ratio_stage{number + 1}"] = _gradient_ratio(adversarial, content, result)
        total = total + adversarial
    return total, losses


def train_step(run: Run, step: Step, batch: Batch) -> dict[str, float]:
    """One step of the networks and, once they are on, of their critics; the losses by name."""
    run.network.train(not step.settled)
    for optimiser in run.optimisers:
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = step.learning_rate
    losses = {"learning_rate": step.learning_rate, "mse_anchor": _anchor_loss(run.method, batch)}
    with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=run.device == "cuda"):
        terms = run.method.terms(run.network, batch, step.number, step.settled)
        total = torch.stack([term.loss for term in terms]).sum()
        losses |= {term.name: term.loss.item() if term.shown is None else term.shown for term in terms}
        if step.adversarial:
            losses |= _train_critics(run, terms)
            added, of_critics = _adversarial(run, step, terms, total)
            total, losses = total + added, losses | of_critics
    total.backward()  # type: ignore[no-untyped-call]
    run.optimiser.step()
    run.average.update_parameters(run.network)
    if not math.isfinite(total.item()):
        raise Diverged(f"training diverged in step {step.number}; lower the learning rate")
    return losses


def _anchor_loss(method: Method, batch: Batch) -> float:
    with torch.no_grad():
        return masked_mse(method.anchor(batch), batch.target, batch.clear).item()
