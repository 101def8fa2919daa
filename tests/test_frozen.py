"""Frozen classes do what frozen dataclasses do, but for what they do not enforce."""

import copy
import dataclasses
import pickle

import pytest

from asgi_closecodes import events
from asgi_closecodes.frozen import frozen


@frozen
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    x: int
    y: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Place(Point):
    z: int = 0


def test_frozen_class_has_value_semantics():
    assert Point(1) == Point(1)
    assert Point(1) != Point(2)
    assert Point(1) != Model(1)
    assert Point(1) != Place(1)
    assert hash(Point(1, ())) == hash(Point(1, ())) == hash(Model(1, ()))
    assert repr(Point(1)) == repr(Model(1)).replace("Model", "Point")
    assert not hasattr(Point(1), "__dict__")


def test_frozen_class_serves_tools_of_dataclasses():
    point = Point(1, [2])
    assert dataclasses.asdict(point) == {"x": 1, "y": [2]}
    assert dataclasses.replace(point, x=3) == Point(3, [2])
    assert [copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))] == [point] * 3
    match point:
        case Point(x, y):
            assert (x, y) == (1, [2])


def test_frozen_repr_of_itself_ends():
    point = Point(1)
    point.y.append(point)
    assert repr(point) == "Point(x=1, y=[...])"


def test_frozen_class_has_frozen_subclasses():
    """Users' gates report subclasses of events, which are frozen dataclasses for type checkers."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Place(1).z = 2


def test_every_event_is_a_cheap_frozen_class():
    kinds = [kind for kind in map(events.__dict__.get, events.__all__) if dataclasses.is_dataclass(kind)]
    assert kinds
    for kind in kinds:
        assert kind.__dataclass_params__.frozen
        assert kind.__repr__ is Point.__repr__
