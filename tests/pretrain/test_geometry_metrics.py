import math

import numpy as np
import pytest
import torch

from pixio_pretrain.geometry.metrics import depth_errors
from pixio_robot.errors import DataError

random = np.random.default_rng(0)
TRUTH = random.uniform(0.5, 4, size=(3, 8, 9))


def test_the_truth_scores_perfectly() -> None:
    found = depth_errors(TRUTH, TRUTH)
    for name in ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"):
        assert (found[name] == 0).all()
    for name in ("delta1", "delta2", "delta3", "delta1.03"):
        assert (found[name] == 1).all()


def test_a_factor_is_measured_and_never_aligned_away() -> None:
    found = {name: values.mean() for name, values in depth_errors(1.3 * TRUTH, TRUTH).items()}
    assert found["abs_rel"] == pytest.approx(0.3)
    assert found["rmse_log"] == pytest.approx(math.log(1.3))
    assert found["log10"] == pytest.approx(math.log10(1.3))
    assert found["silog"] == pytest.approx(math.log(1.3) * math.sqrt(0.5))
    assert (found["delta1"], found["delta2"]) == (0, 1)
    assert found["sq_rel"] == pytest.approx(0.09 * TRUTH.mean())
    assert found["rmse"] == pytest.approx(0.3 * np.mean([np.sqrt((one**2).mean()) for one in TRUTH]))


def test_each_image_is_measured_over_its_own_valid_pixels() -> None:
    truth = np.ones((2, 4, 5))
    truth[1, :2] = 0  # unknown: 10 pixels are left
    prediction = np.stack([np.full((4, 5), 1.1), np.full((4, 5), 1.5)])
    np.testing.assert_allclose(depth_errors(prediction, truth)["abs_rel"], [0.1, 0.5])


def test_pixels_beyond_the_bounds_masked_or_unknown_do_not_count() -> None:
    truth = np.array([0.5, 20, np.nan, -1, np.inf, 0, 1, 1] + 12 * [1.0]).reshape(1, 4, 5)
    mask = np.ones_like(truth, dtype=bool)
    mask[0, 3, 4] = False
    prediction = np.where(truth == 1, 1.0, 100.0)
    prediction[0, 3, 4] = 50
    found = depth_errors(torch.tensor(prediction), torch.tensor(truth), mask=torch.tensor(mask), min_depth=0.6)
    assert found["rmse"] == 0


def test_an_image_without_enough_pixels_has_no_errors() -> None:
    truth = np.ones((2, 4, 5))
    truth[0].flat[9:] = 0
    assert np.isnan(depth_errors(truth * 0 + 1, truth)["abs_rel"]).tolist() == [True, False]


def test_depth_of_zero_is_as_wrong_as_the_nearest_depth() -> None:
    found = depth_errors(0 * TRUTH, TRUTH, min_depth=0.1)
    assert found["log10"].mean() == pytest.approx(np.mean(np.log10(TRUTH / 0.1)))


def test_mistakes_are_told() -> None:
    with pytest.raises(DataError, match="one shape"):
        depth_errors(TRUTH[:, :4], TRUTH)
    with pytest.raises(DataError, match="one shape"):
        depth_errors(TRUTH, TRUTH, mask=TRUTH[0] > 0)
    with pytest.raises(DataError, match="NaN"):
        depth_errors(TRUTH * np.nan, TRUTH)
