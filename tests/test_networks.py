"""The networks: sizes, and the shortcuts that must not change a result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stfgan_xr.predictors.networks import REACH_COARSE, REACH_FINE, Discriminator, Generator, shuffled_kernel


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shake(module: nn.Module, seed: int) -> None:
    """Random statistics and scales, so that normalisation does something."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.2, 0.2),
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)


def network(bands: int = 6, width: int = 8, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    made = Generator(bands, width)
    shake(made, seed)
    return made.eval()


def images(size: int = 64, bands: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((2, 3 * bands, size // 4, size // 4), generator=generator) * 2 - 1
    return coarse, torch.rand((2, 2 * bands, size, size), generator=generator) * 2 - 1


def test_sizes_are_those_of_the_paper() -> None:
    assert parameters(Generator()) == 2_366_086
    assert parameters(Discriminator()) == 5_217_153


def test_an_image_comes_out_at_the_fine_size_and_within_bounds() -> None:
    with torch.inference_mode():
        out = network()(*images())
    assert out.shape == (2, 6, 64, 64)
    assert out.abs().max() < 1


@pytest.mark.parametrize("seed", range(3))
def test_shared_equals_unshared(seed: int) -> None:
    made, (coarse, fine) = network(seed=seed), images(seed=seed)
    with torch.inference_mode():
        assert torch.allclose(torch.tanh(made.finish(coarse, made.share(fine)[0])), made(coarse, fine), atol=1e-5)


def test_one_shared_part_serves_many_days() -> None:
    made, (coarse, fine) = network(), images()
    with torch.inference_mode():
        together = made.finish(coarse, made.share(fine[:1])[0])
        alone = [made.finish(coarse[n : n + 1], made.share(fine[:1])[0]) for n in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_cutting_early_equals_cutting_late() -> None:
    made, (coarse, fine) = network(), images()
    with torch.inference_mode():
        whole = made.finish(coarse, made.share(fine)[0])[..., 16:-16, 16:-16]
        part = made.finish(coarse, made.share(fine, 16)[0], 16)
    assert torch.allclose(whole, part, atol=1e-5)


@pytest.mark.parametrize("width", [4, 16])
def test_folded_equals_unfolded(width: int) -> None:
    made, (coarse, fine) = network(width=width), images()
    folded = made.fold()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in made.modules())
    with torch.inference_mode():
        assert torch.allclose(folded(coarse, fine), made(coarse, fine), atol=1e-5)


def test_kernel_before_the_shuffle_equals_the_one_after() -> None:
    generator = torch.Generator().manual_seed(0)
    half, kernel = torch.rand((1, 12, 9, 11), generator=generator), torch.rand((2, 3, 9, 9), generator=generator)
    after = nn.functional.conv2d(nn.functional.pixel_shuffle(half, 2), kernel, padding=4)
    before = nn.functional.pixel_shuffle(nn.functional.conv2d(half, shuffled_kernel(kernel), padding=2), 2)
    assert torch.allclose(after, before, atol=1e-4)


def test_last_layer_at_zero_predicts_nothing() -> None:
    made, (coarse, fine) = network(), images()
    made.start_at_zero()
    with torch.inference_mode():
        assert made(coarse, fine).abs().max() == 0


def reach(coarse_side: bool) -> int:
    """Largest distance in fine pixels at which an input moves the output of the cell in the middle."""
    made = network(bands=1, width=2)
    for part in made.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data.abs_()
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.bias.data.fill_(1)  # every unit stays on the rising side of its ReLU
    made.double()
    coarse, fine = torch.ones(1, 3, 96, 96).double(), torch.ones(1, 2, 384, 384).double()
    given = (coarse if coarse_side else fine).requires_grad_()
    middle = made.finish(coarse, made.share(fine)[0])[..., 192:196, 192:196].sum()
    (gradient,) = torch.autograd.grad(middle, given)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    scale = 4 if coarse_side else 1
    return max(192 - int(rows[0]) * scale, (int(rows[-1]) + 1) * scale - 196)


def test_nothing_beyond_the_stated_reach_is_seen() -> None:
    assert reach(coarse_side=False) == REACH_FINE
    assert reach(coarse_side=True) == REACH_COARSE


@pytest.mark.parametrize("spectral", [False, True])
def test_discriminator_scores_each_image(spectral: bool) -> None:
    torch.manual_seed(0)
    assert Discriminator(6, 4, spectral=spectral)(images()[1][:, :6]).shape == (2,)
