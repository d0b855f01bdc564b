"""Files that were cut short: set aside, passed over, or named.

Run: pytest tests/test_torn_files.py
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.errors import InputError
from rft_ray.pool import Pool
from rft_ray.records import write_groups
from rft_ray.torn_files import (
    is_whole,
    newest_whole,
    note_sizes,
    say_torn_states,
    set_torn_aside,
    unreadable,
    unused_folder,
)
from rft_ray.types import Group, Problem, Rollout


def write_files(folder: Path, count: int) -> list[Path]:
    """Groups files of a problem each."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.parquet" for number in range(count)]
    for number, path in enumerate(paths):
        write_groups(path, [Group(Problem(f"p{number}", "q", "1"), [Rollout("a", "x" * 100)])])
    return paths


def make_state(folder: Path) -> Path:
    """A training state of two files, as its writer leaves it."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    for name in ("rank_0.pt", "rank_1.pt"):
        (folder / "state" / name).write_bytes(b"weights" * 20)
    note_sizes(folder)
    return folder


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


@given(st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_set_aside_and_the_others_stay(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("sampled") / "sampled"
    first, second = write_files(folder, 2)
    whole = second.read_bytes()
    cut(first, int(share * first.stat().st_size))
    (folder / ".0.parquet.abc.tmp").write_bytes(b"PAR1")
    set_torn_aside(folder)
    assert {path.name for path in folder.iterdir()} == {"0.parquet.damaged", "1.parquet"}
    assert second.read_bytes() == whole and len(Pool(folder)) == 1


def test_one_line_names_the_file_that_was_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = write_files(tmp_path / "sampled", 1)
    cut(path, 50)
    set_torn_aside(path.parent)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: not a readable Parquet file: ")
    assert line.endswith("; set aside, and its rollouts are sampled again")
    set_torn_aside(tmp_path / "nowhere")


def test_a_torn_file_of_the_selected_groups_is_named(tmp_path: Path) -> None:
    path, _ = write_files(tmp_path / "selected", 2)
    assert unreadable(path) is None
    cut(path, 0)
    with pytest.raises(InputError, match=f"{path}: not a readable Parquet file: .* remove "):
        Pool(path.parent)


def test_training_goes_on_from_the_newest_state_that_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (make_state(tmp_path / f"job/step-{n:06d}") for n in (5, 10, 15))
    assert newest_whole(third) == third and newest_whole(second) == second
    cut(third / "state/rank_1.pt", 139)
    (second / "state/rank_0.pt").unlink()
    say_torn_states(tmp_path)
    named = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert named == [str(second), str(third)]
    assert newest_whole(third) == first
    # one that was killed while it was written has no sizes yet
    (first / "sizes.json").unlink()
    assert not is_whole(first) and newest_whole(third) is None


def test_a_state_that_is_written_again_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "job/step-000005-of-2-ranks", tmp_path / "job/step-000010-of-2-ranks"
    assert unused_folder(first) == first
    for folder in (first, second):
        make_state(folder)
    cut(second / "state/rank_1.pt", 139)
    again = unused_folder(second)
    assert again == second.with_name("step-000010-of-2-ranks-01")
    # killed while it was written: nobody knows of it
    (again / "state").mkdir(parents=True)
    assert unused_folder(second) == again and newest_whole(second) == first
    again = make_state(again)
    assert newest_whole(again) == again
    assert unused_folder(second) == second.with_name("step-000010-of-2-ranks-02")
    assert second < again < unused_folder(second) < second.with_name("step-000015-of-2-ranks")
