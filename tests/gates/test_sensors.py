import os
import time

import pytest

from asgi_closecodes.events import SensorUnknown
from asgi_closecodes.gates import Cpu, LoopLag, Memory, Pressure
from tests.support.cgroups import group, tree, v2
from tests.support.fakes import Clock

MIB = 1 << 20


# LoopLag


def test_lag_is_how_late_the_ticker_is():
    clock = Clock()
    lag = LoopLag(0.1, clock=clock)
    assert lag.value() is None  # nobody samples
    lag.sample()
    clock.now += 0.1
    lag.sample()
    assert lag.value() == pytest.approx(0)
    clock.now += 0.35
    lag.sample()
    assert lag.value() == pytest.approx(0.25)
    for _ in range(10):
        clock.now += 0.1
        lag.sample()
    assert lag.value() == pytest.approx(0.125, rel=0.01)  # it halves every second


def test_stale_sample_is_lag():
    clock = Clock()
    lag = LoopLag(0.1, clock=clock)
    lag.sample()
    clock.now += 2.1
    assert lag.value() == pytest.approx(2)


def test_sensor_not_sampled_any_more_is_unknown():
    clock = Clock()
    lag = LoopLag(clock=clock)
    lag.sample()
    lag.stop()
    clock.now += 100
    assert lag.value() is None
    lag.sample()
    assert lag.value() == pytest.approx(0, abs=1e-9) or lag.value() < 0


@pytest.mark.parametrize("name", ["interval", "half_life"])
@pytest.mark.parametrize("seconds", [0, -0.1, float("nan"), float("inf"), 10**40, "1"])
def test_interval_and_a_half_life_are_numbers_of_seconds(name, seconds):
    with pytest.raises(ValueError, match=f"{name}={seconds!r}"):
        LoopLag(**{name: seconds})


# Memory


@pytest.mark.parametrize("limit", [0, -1, float("nan"), 10**40, "1"])
def test_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ValueError, match=f"limit={limit!r}"):
        Memory(limit)


def memory(root):
    sensor = Memory(root=root, clock=Clock())
    sensor.sample()
    return sensor.value()


def test_page_cache_that_can_be_taken_back_is_no_use(tmp_path):
    files = v2() | group("/app", maximum=100 * MIB, current=95 * MIB, anon=30 * MIB, inactive=50 * MIB)
    assert memory(tree(tmp_path, files)) == pytest.approx(0.45)


def test_anonymous_memory_counts_in_any_case(tmp_path):
    files = v2() | group("/app", maximum=100 * MIB, current=95 * MIB, anon=60 * MIB, inactive=50 * MIB)
    assert memory(tree(tmp_path, files)) == pytest.approx(0.6)


def test_softer_limit_counts_if_it_is_tighter(tmp_path):
    files = v2() | group("/app", maximum=100 * MIB, high=50 * MIB, current=40 * MIB)
    assert memory(tree(tmp_path, files)) == pytest.approx(0.8)


def test_tightest_of_all_ancestors_counts(tmp_path):
    files = v2("/pod/app")
    files |= group("/pod/app", maximum=1000 * MIB, current=40 * MIB)
    files |= group("/pod", maximum=100 * MIB, current=90 * MIB)
    files |= group("/other", maximum=1, current=1)
    assert memory(tree(tmp_path, files)) == pytest.approx(0.9)


def test_in_a_container_the_path_may_be_the_host_s(tmp_path):
    files = v2("/system.slice/docker-123.scope") | group("", maximum=100 * MIB, current=70 * MIB)
    assert memory(tree(tmp_path, files)) == pytest.approx(0.7)


def v1(limit, used, **stat):
    base = "sys/fs/cgroup/memory/docker/abc"
    lines = "\n".join(f"{name} {number}" for name, number in stat.items())
    return {
        "proc/self/cgroup": "11:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x",
        f"{base}/memory.limit_in_bytes": limit,
        f"{base}/memory.usage_in_bytes": used,
        f"{base}/memory.stat": lines,
    }


def test_version_1_likewise(tmp_path):
    files = v1(100 * MIB, 90 * MIB, total_inactive_file=40 * MIB, total_rss=20 * MIB)
    assert memory(tree(tmp_path, files)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "files", [{}, v2() | group("/app", current=MIB), v1(9223372036854771712, MIB)], ids=["none", "v2", "v1"]
)
def test_memory_without_a_limit_is_the_machine_s(tmp_path, files):
    assert 0 < memory(tree(tmp_path, files)) < 1


def test_size_of_its_own_is_compared_with_what_is_resident():
    sensor = Memory(1 << 40)
    sensor.sample()
    assert 0 < sensor.value() < 0.01


def test_sensor_unreadable_is_unknown_and_says_so_once(tmp_path):
    clock, told = Clock(), []
    sensor = Memory(root=tree(tmp_path, v2() | group("/app", maximum="many", current=1)), clock=clock)
    Pressure(sensor, 0.9, 0.8).attach(told.append)
    for _ in range(5):
        sensor.sample()
        clock.now += 2
    assert sensor.value() is None
    [event] = told
    assert (type(event), event.sensor, event.problem[:10]) == (SensorUnknown, "memory", "ValueError")
    tree(tmp_path, {"sys/fs/cgroup/app/memory.max": 10})
    sensor.sample()
    assert sensor.value() == pytest.approx(0.1)


def test_files_are_read_once_a_second(tmp_path):
    clock = Clock()
    sensor = Memory(root=tree(tmp_path, v2() | group("/app", maximum=10, current=1)), clock=clock)
    sensor.sample()
    tree(tmp_path, {"sys/fs/cgroup/app/memory.current": 9})
    clock.now += 0.9
    sensor.sample()
    assert sensor.value() == pytest.approx(0.1)
    clock.now += 0.2
    sensor.sample()
    assert sensor.value() == pytest.approx(0.9)


# Cpu


def test_throttled_periods_count_where_there_is_a_quota(tmp_path):
    clock = Clock()
    stat = "sys/fs/cgroup/app/cpu.stat"
    tree(tmp_path, v2() | {stat: "usage_usec 1\nnr_periods 100\nnr_throttled 10"})
    sensor = Cpu(root=tmp_path, clock=clock)
    sensor.sample()
    assert sensor.value() is None  # a share of what? there is no window yet
    for periods, throttled, share in ((110, 13, 0.3), (120, 23, 1.0), (120, 23, 0.0)):
        clock.now += 1
        tree(tmp_path, {stat: f"nr_periods {periods}\nnr_throttled {throttled}"})
        sensor.sample()
        assert sensor.value() == pytest.approx(share)


@pytest.mark.parametrize("file", ["sys/fs/cgroup/app/cpu.pressure", "proc/pressure/cpu"])
def test_cpu_without_a_quota_is_the_time_waited(tmp_path, file):
    text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"
    tree(tmp_path, v2() | {"sys/fs/cgroup/app/cpu.stat": "usage_usec 1\nnr_periods 0", file: text})
    sensor = Cpu(root=tmp_path, clock=Clock())
    sensor.sample()
    assert sensor.value() == pytest.approx(0.125)


def test_cpu_without_pressure_or_cgroup_is_process_time(tmp_path):
    sensor = Cpu(root=tmp_path)
    sensor.sample()
    assert sensor.value() is None
    sensor._next = 0
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    sensor.sample()
    assert 0.1 / len(os.sched_getaffinity(0)) < sensor.value() <= 1.1


def test_files_of_this_machine_can_be_read(caplog):
    for sensor in (Memory(), Cpu()):
        sensor.sample()
    assert not caplog.records
