"""A file that is followed gives each line once, whatever happens to the file."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.cli.logs import follow
from asgi_closecodes.cli.logs.follow import Followed


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "app.log"
    file.write_bytes(b"one\ntwo\n")
    return file


@pytest.fixture
def followed(file):
    with contextlib.closing(Followed(str(file))) as followed:
        yield followed


def append(file, text):
    with file.open("ab") as output:
        output.write(text)


def test_follow_begins_with_the_last_lines(file, followed):
    append(file, b"three\nfo")
    assert followed.read_last(2) == [b"two", b"three"]
    assert followed.read_last(9) == [b"one", b"two", b"three"]
    assert followed.read_last(0) == []
    assert [*followed.read_new()] == []
    append(file, b"ur\n")
    assert [*followed.read_new()] == [b"four"]


def test_follow_without_waiting_reads_an_unfinished_line(file, followed):
    append(file, b"thr")
    followed.read_last(1)
    assert followed.take_incomplete() == b"thr"
    assert followed.take_incomplete() == b""


def test_line_counts_when_its_end_is_written(file, followed):
    followed.read_last(1)
    append(file, b"thr")
    assert [*followed.read_new()] == []
    append(file, b"ee\nfour\nfi")
    assert [*followed.read_new()] == [b"three", b"four"]
    append(file, b"ve\n")
    assert [*followed.read_new()] == [b"five"]


def test_follow_goes_on_behind_a_rename(file, followed):
    followed.read_last(0)
    append(file, b"three\n")
    os.rename(file, file.with_suffix(".1"))
    append(file.with_suffix(".1"), b"four\nhalf")  # the writer has not noticed yet
    assert [*followed.read_new()] == [b"three", b"four"]
    file.write_bytes(b"five\n")
    assert [*followed.read_new()] == [b"half", b"five"]
    append(file, b"six\n")
    assert [*followed.read_new()] == [b"six"]


def test_rename_and_a_new_file_between_two_looks_lose_nothing(file, followed):
    followed.read_last(0)
    append(file, b"three\n")
    os.rename(file, file.with_suffix(".1"))
    file.write_bytes(b"four\n")
    assert [*followed.read_new()] == [b"three", b"four"]


def test_follow_while_lines_are_written_loses_none(file, followed, monkeypatch):
    followed.read_last(0)
    os.rename(file, file.with_suffix(".1"))
    file.write_bytes(b"new\n")
    opened = follow._opened

    def late(path):
        append(file.with_suffix(".1"), b"late\n")
        return opened(path)

    monkeypatch.setattr(follow, "_opened", late)
    assert [*followed.read_new()] == [b"late", b"new"]


def test_follow_starts_again_behind_a_truncation(file, followed):
    followed.read_last(0)
    append(file, b"half")
    assert [*followed.read_new()] == []
    os.truncate(file, 0)
    assert [*followed.read_new()] == [b"half"]
    append(file, b"three\n")
    assert [*followed.read_new()] == [b"three"]


def test_line_without_an_end_is_not_kept_for_ever(file, followed, monkeypatch):
    monkeypatch.setattr(follow, "MAX_LINE_BYTES", 10)
    followed.read_last(0)
    append(file, b"x" * 11)
    assert [*followed.read_new()] == [b"x" * 11]


def test_last_lines_are_not_searched_for_ever(file, followed, monkeypatch):
    monkeypatch.setattr(follow, "BLOCK_BYTES", 16)
    monkeypatch.setattr(follow, "MAX_LINE_BYTES", 16)
    append(file, b"x" * 1000 + b"\nend\n")
    assert followed.read_last(5) == [b"end"]


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=30), st.integers(0, 40))
def test_last_lines_are_those_of_the_whole_file(tmp_path_factory, lines, count):
    file = tmp_path_factory.mktemp("follow") / "app.log"
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    with contextlib.closing(Followed(str(file))) as followed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "BLOCK_BYTES", 16)
        assert followed.read_last(count) == (lines[-count:] if count else [])
