"""The errors: catchable by their root, and able to travel between processes."""

import pickle

import pytest

from pixio_robot import PixioRobotError, errors


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownNameError("camera", "corner", ["corner2", "topview"]),
        errors.ImageError("too dark"),
    ],
)
def test_an_error_arrives_from_a_worker_process_as_it_left(error: PixioRobotError) -> None:
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_every_error_has_our_root() -> None:
    ours = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(ours) == 9
    assert all(issubclass(error, PixioRobotError) for error in ours)


def test_a_name_far_from_all_others_gets_no_suggestion() -> None:
    error = errors.UnknownNameError("camera", "xyz", ["corner2"])
    assert error.nearest is None
    assert "Did you mean" not in str(error)


def test_a_program_ends_with_one_line() -> None:
    @errors.told_on_one_line("paint")
    def main() -> None:
        raise errors.ImageError("too dark")

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == "paint: too dark"  # printed by Python, which then exits with 1
