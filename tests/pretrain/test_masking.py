import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixio_pretrain.objectives.masking import check_mask, count_visible, shuffle_patches
from pixio_robot.errors import SettingError
from pixio_robot.tokens import take

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))  # blocks per side, block side, batch


def noise_for(sizes: tuple[int, int, int]) -> torch.Tensor:
    side, block, batch = sizes
    return torch.rand(batch, side**2, generator=torch.Generator().manual_seed(side + 10 * block))


@given(SIZES)
def test_shuffling_and_restoring_patches_changes_nothing(sizes: tuple[int, int, int]) -> None:
    side, block, batch = sizes
    tokens = torch.randn(batch, (side * block) ** 2, 3)
    order = shuffle_patches(noise_for(sizes), grid=side * block, block=block)
    assert torch.equal(take(take(tokens, order), order.argsort(dim=1)), tokens)


@given(SIZES, st.data())
def test_blocks_are_hidden_whole_and_in_the_exact_number(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    side, block, batch = sizes
    kept = data.draw(st.integers(0, side**2))
    noise = noise_for(sizes)
    order = shuffle_patches(noise, grid=side * block, block=block)
    seen = torch.zeros(batch, (side * block) ** 2).scatter(1, order[:, : kept * block**2], 1.0)
    blocks = seen.view(batch, side, block, side, block).transpose(2, 3).flatten(3).flatten(1, 2)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))  # whole
    smallest = torch.zeros_like(noise).scatter(1, noise.argsort(dim=1)[:, :kept], 1.0)
    assert torch.equal(blocks[..., 0], smallest)  # those of the smallest noise, row-major over the grid of blocks


@given(st.integers(1, 3), st.integers(1, 3))
def test_equal_noise_still_makes_an_order_without_repeats(side: int, block: int) -> None:
    order = shuffle_patches(torch.full((2, side**2), 0.5), grid=side * block, block=block)
    assert order.sort(dim=1).values.tolist() == 2 * [list(range((side * block) ** 2))]


def test_a_block_side_of_one_orders_single_patches_by_their_noise_as_mae_does() -> None:
    noise = torch.tensor([[0.7, 0.1, 0.9, 0.3]])
    assert shuffle_patches(noise, grid=2, block=1).tolist() == [[1, 3, 0, 2]]


def test_the_patches_of_a_block_come_in_reading_order() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.8, 0.7]])
    order = shuffle_patches(noise, grid=4, block=2)
    assert order[0, :4].tolist() == [2, 3, 6, 7]  # the upper right block


@given(st.integers(2, 4096), st.data())
def test_a_ratio_that_means_a_whole_number_of_blocks_hides_exactly_that_many(blocks: int, data: st.DataObject) -> None:
    hidden = data.draw(st.integers(1, blocks - 1))
    assert count_visible(blocks, hidden / blocks) == blocks - hidden


@given(st.integers(1, 4096), st.floats(0, 1))
def test_the_visible_count_is_rounded_down(blocks: int, ratio: float) -> None:
    exact = blocks * (1 - ratio)
    assert exact - 1 < count_visible(blocks, ratio) <= exact + 1e-9


@given(st.integers(1, 24), st.integers(-2, 24), st.floats())
def test_a_mask_either_hides_and_shows_something_or_is_refused_by_name(grid: int, block: int, ratio: float) -> None:
    try:
        check_mask(grid, block, ratio)
    except SettingError as error:
        name, message = re.match(r"(mask_\w+)=(.*)", str(error)).groups()
        if name == "mask_block":
            assert block < 1 or grid % block or block == grid
            assert str(block) in message
        else:  # what the message advises is taken
            assert not 0 < ratio < 1 or count_visible((grid // block) ** 2, ratio) in (0, (grid // block) ** 2)
            check_mask(grid, block, float(re.search(r"not above ([\d.]+),", message)[1]))
    else:
        assert 0 < count_visible((grid // block) ** 2, ratio) < (grid // block) ** 2


def test_a_block_that_does_not_divide_the_grid_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(SettingError, match=r"mask_block=5 does not divide a grid of 8 x 8 patches; .*: 4\."):
        check_mask(8, 5, 0.75)
    with pytest.raises(SettingError, match="mask_block=8 is the whole grid"):
        check_mask(8, 8, 0.75)


@pytest.mark.parametrize("ratio", [-0.1, 0.0, 1e-12, 0.8, 1.0, float("nan")])
def test_a_ratio_that_hides_everything_or_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(SettingError, match=r"above 0 and not above 0\.75"):
        check_mask(4, 2, ratio)
