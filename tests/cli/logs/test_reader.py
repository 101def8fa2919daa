"""Files, pipes and globs are one log; nothing is lost, and memory is bounded."""

import contextlib
import gzip
import io
import json
import os
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.cli.logs import reader
from asgi_closecodes.cli.logs.aggregate import Closes, Errors, total
from asgi_closecodes.cli.logs.reader import Log, picked, whole_lines
from tests.benchmarks.reader import generate


def line(time, **keys):
    return json.dumps({"timestamp": f"2026-11-23T19:{time}Z", **keys}) + "\n"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 16)
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 64)


class Pipe(io.BytesIO):
    """Gives what it has in pieces, as a pipe does."""

    def __init__(self, content, sizes):
        super().__init__(content)
        self.sizes = sizes

    def read1(self, size=-1):
        return super().read1(min(size, next(self.sizes)))


pieces = st.lists(st.sampled_from([b"\n", b"a", b"xyz", b"xy", b"\0", b"{", b'"error"']), max_size=40).map(b"".join)


@given(pieces, st.lists(st.integers(1, 9), min_size=1))
def test_blocks_are_whole_lines(content, sizes):
    blocks = [*whole_lines(Pipe(content, iter(sizes * 200)))]
    assert b"".join(blocks).replace(b"\0", b"") == content.replace(b"\0", b"")
    assert all(block.endswith(b"\n") for block in blocks[:-1])


@given(pieces, st.lists(st.sampled_from([b"xyz", b"a", b'"error"', b"zx"]), unique=True))
def test_lines_are_picked_once_and_in_order(content, needles):
    lines = content.removesuffix(b"\n").split(b"\n")
    expected = [line for line in lines if not needles or any(needle in line for needle in needles)]
    assert [*picked(content, needles)] == expected


def test_line_that_is_too_long_is_left_out(small_blocks):
    content = b"one\n" + b"x" * 1000 + b"\ntwo\n" + b"y" * 1000
    assert b"".join(whole_lines(io.BytesIO(content))).split() == [b"one", b"two"]


def test_hole_at_the_start_is_none_of_the_line(small_blocks):
    content = b"\0" * 1000 + b'{"a": 1}\n'
    assert b"".join(whole_lines(io.BytesIO(content))).strip(b"\0") == b'{"a": 1}\n'


def messages(log, *needles):
    return [record.message for record in log.records(*needles)]


def test_reader_plain_and_gzip_progress_is_in_bytes_on_disk(tmp_path):
    plain, packed = tmp_path / "a.log", tmp_path / "b.log.gz"
    plain.write_text(line("00:00", message="one"))
    packed.write_bytes(gzip.compress(b"".join(line("00:00", message="x" * 100).encode() for _ in range(1000))))
    steps = []
    log = Log([str(plain), str(packed)], progress=steps.append)
    assert log.size == plain.stat().st_size + packed.stat().st_size
    assert messages(log) == ["one"] + ["x" * 100] * 1000
    assert sum(steps) == log.size
    assert log.lines == 1001
    assert log.has_json
    assert not log.problems


def test_glob_is_its_files_and_a_file_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("app.log", "app.log.1", "app[1].log"):
        (tmp_path / name).write_text(line("00:00", message=name))
    os.symlink("app.log", "current.log")
    log = Log(["app.log*", "app.log", "current.log", "./app.log", "app[1].log", "*.none"])
    assert messages(log) == ["app.log", "app.log.1", "app[1].log"]
    assert [*log.problems] == ["*.none: no file matches"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        (b"\x7fELF\0\0\0" * 1000, "is binary"),
        ('{"a": 1}\n'.encode("utf-16"), "is binary"),
        (gzip.compress(b"x" * 5_000_000 + os.urandom(5000))[:-4], "is damaged: Compressed file ended before"),
        (gzip.compress(b'{"a": 1}\n')[:-8] + b"12345678", "is damaged: CRC check failed"),
        (b"\x1f\x8b\x08" + os.urandom(100), "is damaged"),
    ],
    ids=["missing", "program", "UTF-16", "cut", "damaged", "no gzip inside"],
)
def test_unreadable_file_is_a_problem_and_the_rest_is_read(tmp_path, content, problem):
    (tmp_path / "good").write_text(line("00:00", message="good"))
    if content is not None:
        (tmp_path / "bad").write_bytes(content)
    log = Log([str(tmp_path / "bad"), str(tmp_path / "good")])
    assert messages(log, b"message") == ["good"]
    [told] = log.problems
    assert told.startswith(f"{tmp_path / 'bad'}: {problem}")


def test_damaged_file_is_read_up_to_the_damage(tmp_path):
    lines = b"".join(line("00:00", message=str(number)).encode() for number in range(20_000))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines)[:-2000])
    log = Log([str(tmp_path / "cut.gz")])
    assert 0 < len(messages(log)) < 20_000
    assert log.problems


@pytest.mark.parametrize("path", ["/", "a\0b", "/proc/self/mem"])
def test_path_that_is_no_file_is_a_problem(path):
    log = Log([path])
    assert messages(log) == []
    assert len(log.problems) == 1


@pytest.mark.parametrize(
    ("last", "note"), [('{"a": 1}', False), ('{"a": "half', True), ("some text", False), ('{"a": 1}\n', False)]
)
def test_last_line_that_is_cut_off_is_noted(tmp_path, last, note):
    file = tmp_path / "app.log"
    file.write_text(line("00:00", message="good") + last)
    log = Log([str(file)])
    assert messages(log)[0] == "good"
    assert [*log.notes] == ([f"{file}: skipped its incomplete last line"] if note else [])
    assert log.lines == 2


def test_pipe_can_be_read_twice(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    packed = gzip.compress(line("00:00", message="one").encode())
    writer = threading.Thread(target=pipe.write_bytes, args=[packed])  # each end waits for the other
    writer.start()
    with contextlib.closing(Log([str(pipe)], twice=True)) as log:
        assert messages(log) == messages(log) == ["one"]
    writer.join()


@pytest.mark.slow
def test_reader_of_a_large_file_takes_no_memory_and_counts_all(tmp_path):
    """Memory does not grow with the file, and every error counts."""
    file = tmp_path / "app.log"
    with file.open("wb") as output:
        count = generate(output, 16 * 2**20)
    errors, closes = Errors(), Closes()
    tracemalloc.start()
    for aggregate in (errors, closes):
        for record in Log([str(file)]).records(*aggregate.NEEDLES):
            aggregate.add(record)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    assert total(errors.kinds.values()).count == closes.codes[1011].count == count
