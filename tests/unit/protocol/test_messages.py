"""The messages as a whole: one room for all names, a socket for each, limits in each type."""

import importlib
import pkgutil

import msgspec
import pytest
from msgspec import inspect as types

from labmesh.errors import ProtocolError
from labmesh.protocol import messages
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Message, Reply, Request

MODULES = [
    importlib.import_module(f"{messages.__name__}.{each.name}")
    for each in pkgutil.iter_modules(messages.__path__)
]
STRUCTS = {
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
}
SENT = {kind for kind in STRUCTS if kind.__struct_config__.tag not in (None, kind.__name__)}
REQUESTS = sorted((kind for kind in SENT if issubclass(kind, Request)), key=str)
SOCKETS = {
    name: getattr(messages, name)
    for name in messages.__all__
    if name.endswith("_REQUESTS") or name == "REPLIES"
}


def test_every_struct_can_be_imported_from_one_place():
    public = {kind for kind in STRUCTS if kind.__module__.startswith(f"{messages.__name__}.")}
    assert {kind.__name__ for kind in public} <= set(messages.__all__)
    assert all(getattr(messages, kind.__name__) is kind for kind in public)


def test_every_message_has_a_tag_of_its_own_and_a_socket_that_takes_it():
    assert len({kind.__struct_config__.tag for kind in SENT}) == len(SENT)
    requests = {kind for name, kinds in SOCKETS.items() if name != "REPLIES" for kind in kinds}
    assert requests == set(REQUESTS)
    assert set(messages.REPLIES) == {kind for kind in SENT if issubclass(kind, Reply)}
    assert all(len(set(kinds)) == len(kinds) for kinds in SOCKETS.values())


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_a_request_has_a_limit_to_each_of_its_texts_and_counts(kind):
    for field in types.type_info(kind).fields:
        declared = field.type
        if isinstance(declared, types.StrType):
            assert declared.max_length is not None or declared.pattern is not None, field.name
        # A version is compared; a position in a bank's list is only looked up.
        if isinstance(declared, types.IntType) and field.name not in ("version", "after"):
            assert declared.le is not None, field.name
            assert declared.ge is not None, field.name


def test_what_is_common_to_messages_is_never_sent_as_such():
    codec = Codec(tuple(SENT))
    for kind in STRUCTS - SENT:
        if issubclass(kind, Message):
            header = msgspec.json.encode({"type": kind.__name__, "id": "1"})
            with pytest.raises(ProtocolError, match="unknown message type"):
                codec.decode([header])


LEASE = {"type": "lease", "id": "1", "fence": 1, "ttl_s": 10.0, "left_s": 9.5}
ITEM = {"type": "item", "id": "1", "index": 0, "value": 2.5}
STATE = {"type": "call_state", "id": "1", "state": "returned"}


@pytest.mark.parametrize("valid", [LEASE, ITEM, STATE], ids=lambda valid: valid["type"])
def test_an_answer_of_a_relay_is_taken(valid):
    assert Codec(messages.REPLIES).decode([msgspec.json.encode(valid)]).message.id == "1"


@pytest.mark.parametrize(
    ("valid", "field", "value"),
    [
        *[(LEASE, "fence", value) for value in (0, -1, 1.5, True, "1", None, 2**53 + 1, 2**64 - 1)],
        *[(LEASE, "ttl_s", value) for value in (0, -1.0, 1e9, "10", None, float("inf"))],
        *[(LEASE, "ttl_s", value) for value in (float("nan"), [10])],
        *[(LEASE, "left_s", value) for value in (-0.5, float("nan"), float("inf"), None)],
        *[(LEASE, "age_s", value) for value in (-0.5, float("nan"), "1")],
        *[(LEASE, name, value) for name in ("holder", "note") for value in ("x" * 257, None, 3)],
        *[(ITEM, "index", value) for value in (-1, 1.0, True, None, 2**53 + 1)],
        *[(STATE, "state", value) for value in ("", "done", "RUNNING", None, 1, ["queued"])],
        *[(STATE, "method", value) for value in ("x" * 257, None, 3)],
        *[(STATE, "kept", value) for value in (1, "true", None)],
        *[(STATE, "error", value) for value in ("x" * 65, None, ["driver"])],
        *[(STATE, "text", value) for value in ("x" * 65_537, None)],
        *[(STATE, "detail", value) for value in (None, [], "x", 1)],
        *[(STATE, "age_s", value) for value in (-1, float("inf"), None)],
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else f"{value!r:.20}",
)
def test_an_answer_of_a_hostile_relay_is_not(valid, field, value):
    with pytest.raises(ProtocolError):
        Codec(messages.REPLIES).decode([msgspec.msgpack.encode(valid | {field: value})])
