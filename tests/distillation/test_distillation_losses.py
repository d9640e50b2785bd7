"""The losses of a student against its teacher, by formulas written in another way."""

from __future__ import annotations

import pytest
import torch

from mmgcvit.distillation import FeatureLoss, LogitsLoss


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits(temperature: float):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, dtype=torch.float64), 2 * torch.randn(3, 5, dtype=torch.float64)
    p, q = (torch.exp(x / temperature) for x in (teacher, student))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    wanted = 0.7 * temperature**2 * (p * torch.log(p / q)).sum() / 3
    found = LogitsLoss(weight=0.7, temperature=temperature)(student, teacher)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert float(LogitsLoss()(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_gradient_of_the_logits_barely_depends_on_the_temperature():
    """At high temperatures the loss becomes half the mean squared difference of centred logits, over the classes."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    differences = student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)
    wanted = differences.square().sum() / (2 * 6 * 4)
    assert float(LogitsLoss(temperature=100.0)(student, teacher)) == pytest.approx(float(wanted), rel=0.05)


def test_features():
    """The squared difference of standardised vectors is 2 - 2 r, with their correlation r."""
    torch.manual_seed(0)
    loss = FeatureLoss((4, 6), (5, 7), weight=0.5)
    students = torch.randn(2, 4, 5, 3), torch.randn(2, 6, 3, 2)
    teachers = 3 + torch.randn(2, 5, 5, 3), torch.randn(2, 7, 3, 2)
    each = []
    for adapter, student, teacher in zip(loss.adapters, students, teachers, strict=True):
        mapped = torch.einsum("oc,bchw->bohw", adapter.weight[:, :, 0, 0], student) + adapter.bias[:, None, None]
        pairs = zip(mapped.permute(0, 2, 3, 1).reshape(-1, teacher.shape[1]),
                    teacher.permute(0, 2, 3, 1).reshape(-1, teacher.shape[1]), strict=True)  # fmt: skip
        each.append(torch.stack([2 - 2 * torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean())
    torch.testing.assert_close(loss(students, teachers), 0.5 * (each[0] + each[1]) / 2, rtol=1e-3, atol=1e-4)


def test_maps_of_other_sizes_are_resized_to_the_students():
    """A constant map stays constant, whatever its size; the mean of a ramp is kept."""
    loss = FeatureLoss((3,), (3,))
    with torch.no_grad():
        loss.adapters[0].weight.copy_(torch.eye(3)[:, :, None, None])
        loss.adapters[0].bias.zero_()
    vector = torch.tensor([1.0, -2.0, 5.0])[None, :, None, None]
    for size in ((7, 9), (2, 2), (1, 1), (16, 16)):
        found = loss([vector.expand(2, 3, 5, 4)], [(2 * vector + 1).expand(2, 3, *size)])
        assert found.item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_bad_weights(value: float):
    with pytest.raises(ValueError, match=r"logits: weight=.*; allowed: a number > 0"):
        LogitsLoss(weight=value)
    with pytest.raises(ValueError, match=r"logits: temperature=.*; allowed: a number > 0"):
        LogitsLoss(temperature=value)
    with pytest.raises(ValueError, match=r"features: weight=.*; allowed: a number > 0"):
        FeatureLoss((3,), (4,), weight=value)
