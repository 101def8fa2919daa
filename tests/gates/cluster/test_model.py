"""The model that the simulation runs answers as the script does; and what a small simulation shows."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_closecodes.gates.cluster.lease import Request
from tests.benchmarks import cluster_simulation
from tests.benchmarks.cluster_model import Model

from .fake_cluster import Cluster

_MS = 1_700_000_000_000

syncs = st.lists(
    st.tuples(
        st.integers(0, 4),  # worker
        st.integers(-3, 40_000),  # ms that pass; the clock may go back a little
        st.integers(0, 3),  # syncs that were lost before this one
        st.booleans(),  # whether the last one was answered
        st.booleans(),  # leased
        st.integers(0, 12),  # used
        st.integers(0, 12),  # have
        st.integers(0, 5),  # need
        st.integers(0, 5),  # headroom
        st.integers(1, 30),  # limit
        st.integers(0, 19),  # leaves if 0
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(syncs)
def test_both_answer_the_same(server, steps):
    with server.client() as client:
        cluster = Cluster(client)
        model = Model()
        seqs, acked, acked_at, now = [0] * 5, [0] * 5, [0] * 5, 0
        for worker, ms, lost, was_answered, leased, used, have, need, headroom, limit, leaves in steps:
            now += ms
            seqs[worker] += lost + 1
            request = Request(
                worker=str(worker),
                seq=seqs[worker],
                acked=acked[worker],
                elapsed=max(now - acked_at[worker], 0) if acked[worker] else 0,
                leased=int(leased),
                used=used,
                have=have,
                need=need,
                headroom=headroom,
                limit=limit,
                lease_duration=30_000,
                leave=int(leaves == 0),
            )
            cluster.now = now / 1000
            reply = cluster.deliver(request)
            assert model.sync(request, _MS + now) == reply
            assert cluster.grants().keys() == model.records.keys()
            if was_answered:
                acked[worker], acked_at[worker] = request.seq, now


@pytest.mark.parametrize("scenario", ["a_region_lost", "a_short_outage", "a_long_outage", "an_outage_when_full"])
def test_free_permits_can_be_had_and_no_more(scenario):
    simulation = cluster_simulation.Simulation(40, 40_000)
    getattr(cluster_simulation, scenario)(simulation, 40_000 / cluster_simulation.LENGTH)
    use, _ = simulation.at_saturation()
    assert not use < 0.98
    assert simulation.false + simulation.by_fallback < 0.005 * simulation.arrived
    assert simulation.overshoot == 0
