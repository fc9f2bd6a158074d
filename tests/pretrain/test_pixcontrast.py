import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.objectives.cells import cell_centers, find_positives, find_shared
from pixio_pretrain.objectives.pixcontrast import PixContrast, PixContrastConfig, contrast_loss
from pixio_robot.errors import SettingError

TINY: dict[str, Any] = {"encoder": "pixio_vitt16", "width": 16, "depth": 2, "heads": 2, "patch_size": 8}
TINY |= {"image_size": 24, "class_tokens": 2, "projection_hidden": 12, "projection_width": 8}


def tiny(**changes: Any) -> PixContrast:
    model = PixContrastConfig(**(TINY | changes)).build()
    model.initialize(torch.Generator().manual_seed(0))
    return model


def pairs(model: PixContrast, count: int = 3) -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    make, image = model.samples(crop_scale=0.3), random.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    samples = [make(Image.fromarray(image), random) for _ in range(count)]
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}


def test_the_loss_is_that_of_cells_worked_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]).log()[None]
    logits[0, 1] = 0.0
    positives = torch.tensor([[[1, 0, 1], [0, 1, 0], [1, 1, 1]]]).bool()
    shared = torch.tensor([[1, 1, 0]]).bool()
    expected = (-math.log((1 + 3) / 6) - math.log(1 / 3)) / 2  # the third cell is not in sight
    assert contrast_loss(logits, positives, shared).item() == pytest.approx(expected, abs=1e-6)


def test_a_shared_cell_without_a_positive_and_views_apart_do_not_count_but_views_apart_stay_in_the_mean() -> None:
    logits = torch.randn(2, 2, 2, requires_grad=True)
    positives = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 0]]]).bool()
    shared = torch.tensor([[1, 1], [0, 0]]).bool()
    loss = contrast_loss(logits, positives, shared)
    torch.testing.assert_close(loss, F.cross_entropy(logits[0, :1], torch.tensor([0])) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad.abs().sum(dim=-1) > 0, torch.tensor([[True, False], [False, False]]))


def test_shared_cells_are_those_whose_centres_the_other_view_sees_flipped_or_not() -> None:
    box, other = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.2, 0.0, 1.0, 0.5]])
    expected = [[True, True, False, False]]  # the left column's centre is at 0.25
    assert find_shared(box, other, (2, 2)).tolist() == expected
    assert find_shared(box, other[:, [2, 1, 0, 3]], (2, 2)).tolist() == expected
    assert find_shared(other, torch.tensor([[0.0, 0.6, 1.0, 1.0]]), (2, 2)).sum() == 0


def test_every_shared_cell_has_a_positive_at_the_papers_threshold() -> None:
    model = tiny()
    boxes = pairs(model, 64)["boxes"]
    positives = find_positives(boxes[:, 0], boxes[:, 1], (7, 7), 0.7)
    shared = find_shared(boxes[:, 0], boxes[:, 1], (7, 7))
    assert shared.any()
    assert (positives.any(dim=-1) | ~shared).all()


def test_the_loss_of_a_model_is_the_mean_of_both_directions_and_of_images_cell_by_cell() -> None:
    model = tiny().eval()
    batch = pairs(model)
    batch["boxes"][0] = torch.tensor([[0.0, 0.0, 0.4, 0.4], [1.0, 0.5, 0.6, 1.0]])  # apart
    output = model(**batch)
    total = 0.0
    for one, other in ((0, 1), (1, 0)):
        for image, boxes in enumerate(batch["boxes"]):
            here, there = (cell_centers(boxes[view][None], (3, 3))[0] for view in (one, other))
            low, high = boxes[other].view(2, 2).aminmax(dim=0)
            unit = ((boxes[:, 2:] - boxes[:, :2]) / 3).norm(dim=-1).max()
            losses = []
            for cell in range(9):
                prediction = output.predictions[0][image, one].flatten(1)[:, cell]
                cosines = F.cosine_similarity(prediction[:, None], output.keys[0][image, other].flatten(1), dim=0)
                positive = (there - here[cell]).norm(dim=-1) / unit < 0.7
                if ((low <= here[cell]) & (here[cell] <= high)).all() and positive.any():
                    shares = (cosines / 0.3).softmax(dim=0)
                    losses.append(-shares[positive].sum().log().item())
            total += sum(losses) / len(losses) / 3 / 2 if losses else 0.0
    assert output.loss.item() == pytest.approx(total, abs=1e-5)


def test_gradients_reach_the_trained_network_only() -> None:
    model = tiny(instance_weight=1.0)
    model(**pairs(model)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad or p.grad is not None for p in model.target.parameters())


def test_the_baseline_is_the_loss_of_features_without_information() -> None:
    model = tiny()
    batch = pairs(model)
    (baseline,) = model.baselines([], [batch]).values()
    with torch.no_grad():
        for head in (model.online.projector[-1], model.target.projector[-1]):
            torch.nn.init.zeros_(head.weight)
    assert baseline == pytest.approx(model(**batch).loss.item(), abs=1e-5)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingError, match="temperature"):
        tiny(temperature=0.0)
    with pytest.raises(SettingError, match="threshold"):
        tiny(threshold=-1.0)
