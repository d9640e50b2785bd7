"""Top-k accuracy: every sample counts once, and predictions are written to a table."""

from __future__ import annotations

import csv
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import METRICS
from timm.data import RealLabelsImagenet

from mmgcvit import TopKAccuracy
from mmgcvit.tasks.classification.consistency import topk_result_names


class Images:
    """Fake data set with a name for each sample."""

    def __init__(self, names: list[str], classes: tuple[str, ...]) -> None:
        self.names, self.metainfo = names, dict(classes=classes)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]


def example(count: int, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, classes, generator=generator).softmax(1),
        torch.randint(0, classes, (count,), generator=generator),
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("count", [3, 10, 11])
def test_every_sample_counts_once(world: int, size: int, count: int):
    """Distributes samples like mmengine's sampler, in batches, and merges the results like mmengine."""
    scores, labels = example(count)
    metric = METRICS.build(dict(type="mmgcvit.TopKAccuracy", topk=(1, 3)))
    metric.dataset = Images([str(i) for i in range(count)], tuple("abcdefg"))
    shares = []
    for rank in range(world):
        with mock.patch("mmengine.dataset.sampler.get_dist_info", return_value=(rank, world)):
            indices = list(DefaultSampler(range(count), shuffle=False))
        for start in range(0, len(indices), size):
            part = torch.tensor(indices[start : start + size])
            metric.process(dict(sample_idx=part, targets=labels[part]), scores[part])
        shares.append(list(metric.results))
        metric.results.clear()
    gathered = [result for results in zip(*shares, strict=True) for result in results][:count]
    found = metric.compute_metrics(gathered)
    order = scores.argsort(1, descending=True)
    assert found["top1"] == pytest.approx(100 * (order[:, 0] == labels).float().mean().item())
    assert found["top3"] == pytest.approx(100 * (order[:, :3] == labels[:, None]).any(1).float().mean().item())


@pytest.mark.parametrize(
    ("topk", "classes", "wanted"),
    [
        ((1, 5), 2, {1}),
        ((1, 5), 5, {1}),
        ((1, 5), 6, {1, 5}),
        ((1, 3), 3, {1}),
        ((5,), 2, {5}),
        ((1, 5), 1, {1, 5}),
    ],
)
def test_k_is_below_the_number_of_classes(topk: tuple[int, ...], classes: int, wanted: set[int]):
    metric = TopKAccuracy(topk=topk)
    labels = torch.tensor([0, classes - 1, 0])
    metric.process(dict(sample_idx=torch.arange(3), targets=labels), torch.eye(3, classes))
    found = set(metric.evaluate(3))
    assert found == {f"accuracy/top{k}" for k in wanted}
    assert topk_result_names(dict(type="TopKAccuracy", topk=topk), dict(num_classes=classes)) == found


def test_missing_samples_raise_an_error():
    scores, labels = example(4)
    metric = TopKAccuracy()
    metric.dataset = Images(list("abcde"), tuple("abcdefg"))
    metric.process(dict(sample_idx=torch.arange(4), targets=labels), scores)
    with pytest.raises(RuntimeError, match="4 samples were evaluated; the data set has 5"):
        metric.evaluate(4)


def test_table(tmp_path: Path):
    scores, labels = example(3, 4)
    metric = TopKAccuracy(topk=(1, 2), out_csv=str(tmp_path / "new" / "table.csv"))
    metric.dataset = Images(["x/1.jpg", "x/2.jpg", "y/3, old.jpg"], ("ant", "bee", "cat", "dog"))
    metric.process(dict(sample_idx=torch.tensor([2, 0, 1]), targets=labels[[2, 0, 1]]), scores[[2, 0, 1]])
    metric.evaluate(3)
    with (tmp_path / "new" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["x/1.jpg", "x/2.jpg", "y/3, old.jpg"]
    for row, score, label in zip(rows, scores, labels, strict=True):
        first, second = score.argsort(descending=True)[:2].tolist()
        names = ("ant", "bee", "cat", "dog")
        assert (row["class"], row["class_1"], row["class_2"]) == (names[label], names[first], names[second])
        assert float(row["probability_1"]) == pytest.approx(score[first].item(), abs=1e-6)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]


def test_real_labels():
    names = [f"val/n{i % 1000:08d}/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(50000)]
    real = RealLabelsImagenet(names).real_labels
    metric = TopKAccuracy(topk=(1, 5), real_labels="timm")
    metric.dataset = Images(names, tuple(map(str, range(1000))))
    rows = []
    for index in range(50000):  # correct for even indices with labels
        given = real[f"ILSVRC2012_val_{index + 1:08d}.JPEG"]
        guess = given[-1] if given and index % 2 == 0 else next(c for c in range(1000) if c not in given)
        others = [c for c in range(1000) if c != guess and c not in given][:4]
        rows.append((index, 0, [guess, *others], [0.6, 0.1, 0.1, 0.1, 0.1]))
    labelled = [index for index in range(50000) if real[f"ILSVRC2012_val_{index + 1:08d}.JPEG"]]
    share = 100 * sum(index % 2 == 0 for index in labelled) / len(labelled)
    found = metric.compute_metrics(rows)
    assert len(labelled) == 46837  # number of images with labels, from the ReaL paper
    assert found["real_top1"] == pytest.approx(share)
    assert found["real_top5"] == pytest.approx(share)
    metric.dataset = Images(["a", "b"], ())
    with pytest.raises(ValueError, match="real_labels: 2 images such as a; allowed: the 50000"):
        metric.compute_metrics(rows[:2])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"topk=\(0, 5\); allowed: integers >= 1"):
        TopKAccuracy(topk=(0, 5))


def test_results_by_class(tmp_path: Path, logged: list[str]):
    """Four classes, one of them without images and one never predicted; the head has a fifth."""
    labels, guesses = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 4]
    metric = TopKAccuracy(topk=(1,), classwise=True, out_csv=str(tmp_path / "table.csv"))
    metric.dataset = Images([f"{i}.jpg" for i in range(6)], ("ant", "bee", "cat", "dog"))
    scores = torch.nn.functional.one_hot(torch.tensor(guesses), 5).float()
    metric.process(dict(sample_idx=torch.arange(6), targets=torch.tensor(labels)), scores)
    found = metric.evaluate(6)
    assert found["accuracy/top1"] == pytest.approx(100 * 4 / 6)
    assert found["accuracy/mean_class"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    with (tmp_path / "table_classes.csv").open(newline="") as file:
        rows = {row.pop("class"): row for row in csv.DictReader(file)}
    assert list(rows) == ["ant", "bee", "cat", "dog", "4"]
    assert rows["ant"] == {
        "images": "3", "predicted": "2", "recall": "66.7", "precision": "100.0",
        "as ant": "2", "as bee": "1", "as cat": "0", "as dog": "0", "as 4": "0"}  # fmt: skip
    assert (rows["bee"]["recall"], rows["bee"]["precision"]) == ("100.0", "66.7")
    assert (rows["cat"]["recall"], rows["cat"]["precision"]) == ("0.0", "")
    assert (rows["dog"]["recall"], rows["dog"]["precision"]) == ("", "")
    lines = logged[-1].splitlines()
    assert lines[1].split() == ["class", "images", "predicted", "recall", "precision"]
    assert "ant         3          2    66.7      100.0" in lines
    assert "confusion matrix (row: class of the image, column: prediction)" in lines
    assert lines[-1].split() == ["4", "0", "0", "0", "0", "0"]
