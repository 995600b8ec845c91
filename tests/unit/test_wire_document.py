"""docs/wire.md against the code: every message, field, answer, topic, extension type and error."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec import inspect as types

from labmesh import errors
from labmesh.protocol import (
    driver_events,
    json_values,
    leases,
    messages,
    msgpack_values,
    packs,
    topics,
)
from labmesh.protocol.batches import (
    BatchEntry,
    read_entries,
    read_outcomes,
    write_outcomes,
)
from labmesh.protocol.codec import Codec, Limits
from labmesh.protocol.event_frame import MAX_EVENT_BYTES, joined, sealed
from labmesh.protocol.messages import (
    MAX_BATCH,
    Batch,
    BatchResult,
    Call,
    Failure,
    Invocation,
    Message,
    Reply,
    Request,
    SessionRequest,
)
from labmesh.protocol.past_calls import Memory
from labmesh.relay import RelayAgent
from labmesh.serving import call_watch, calls, lease_desk, states
from labmesh.serving.relay_facts import RelayFacts
from labmesh.transport.pending import MAX_CALL_BYTES
from labmesh.transport.sockets import MAX_FRAME_BYTES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")

STRUCTS = [
    kind
    for kind in vars(messages).values()
    if inspect.isclass(kind)
    and issubclass(kind, msgspec.Struct)
    and kind.__module__.startswith(f"{messages.__name__}.")
    and kind is not Message
]
#: Never sent as such: what the messages that are made of them have in common.
BASES = (Request, Reply, SessionRequest, Invocation)
REQUEST_TUPLES = {
    name: kinds
    for name, kinds in vars(messages).items()
    if name.endswith(("_REQUESTS", "REPLIES")) and isinstance(kinds, tuple)
}


def sections(level: str) -> dict[str, str]:
    """Heading → text below it, down to the next heading of this or a higher level."""
    higher = "#" * len(level)
    found = re.split(rf"^{higher} (.+)$", DOCUMENT, flags=re.MULTILINE)[1:]
    return {
        heading: re.split(rf"^#{{1,{len(level)}}} ", text, flags=re.MULTILINE)[0]
        for heading, text in zip(found[::2], found[1::2], strict=True)
    }


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = {place for place, row in enumerate(cells) if set(row[0]) == {"-"}}
    return [row for place, row in enumerate(cells) if not {place, place + 1} & heads]


def tag_of(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def heading_of(kind: type[msgspec.Struct]) -> str:
    if kind.__struct_config__.tag is not None and kind not in BASES:
        return f"`{tag_of(kind)}` ({kind.__name__})"
    return kind.__name__


def own_fields(kind: type[msgspec.Struct]) -> list[types.Field]:
    """The fields that a struct adds to those that it has in common with others."""
    declared = types.type_info(kind)
    assert isinstance(declared, types.StructType)
    inherited = {
        name
        for base in BASES
        if issubclass(kind, base) and kind is not base
        for name in base.__struct_fields__
    }
    return [field for field in declared.fields if field.name not in inherited]


def type_words(declared: types.Type) -> str:
    """A field's type with its limits, as the document writes it."""
    match declared:
        case types.StrType(pattern=messages.ID_PATTERN):
            return "id"
        case types.StrType(pattern=messages.KEY_PATTERN):
            return "public key"
        case types.StrType(pattern=str()):
            return "64 hex digits"
        case types.StrType(min_length=least, max_length=None):
            assert least is None
            return "text"
        case types.StrType(min_length=least, max_length=most):
            return f"text, {least or 0} to {most} characters"
        case types.IntType(ge=None, le=None):
            return "integer"
        case types.IntType(ge=least, le=None):
            return f"integer, from {least}"
        case types.IntType(ge=least, le=most):
            return f"integer, {least} to {'2^53' if most == 2**53 else most}"
        case types.FloatType(gt=None, ge=None):
            return "number"
        case types.FloatType(gt=None, ge=least, le=None):
            return f"number, from {least:g}"
        case types.FloatType(gt=above, le=most):
            return f"number, over {above:g} to {most:g}"
        case types.BoolType():
            return "boolean"
        case types.BytesType():
            return "bytes"
        case types.AnyType():
            return "value"
        case types.VarTupleType(item_type=each, max_length=most):
            return f"list of {type_words(each)}, at most {most}"
        case types.ListType(item_type=each, max_length=None):
            return f"list of {type_words(each)}"
        case types.ListType(item_type=each, max_length=most):
            return f"list of {type_words(each)}, at most {most}"
        case types.DictType(value_type=each):
            return f"map of text to {type_words(each).partition(',')[0]}"
        case types.LiteralType(values=choices):
            return " or ".join(f"`{choice}`" for choice in sorted(choices))
        case types.UnionType(types=choices):
            return " or ".join(map(type_words, choices))
        case types.NoneType():
            return "null"
        case types.StructType(cls=kind):
            return kind.__name__
    raise AssertionError(f"no words for {declared}")


def default_words(field: types.Field) -> str:
    """A field's default, as the document writes it (in JSON)."""
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{json.dumps(msgspec.to_builtins(field.default_factory()))}`"
    return f"`{json.dumps(field.default)}`"


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_struct_is_described_with_each_of_its_fields(kind):
    text = sections("###")[heading_of(kind)]
    described = {row[0]: (row[1], row[3]) for row in rows(text)}
    expected = {
        f"`{field.name}`": (type_words(field.type), default_words(field))
        for field in own_fields(kind)
    }
    assert described == expected
    assert all(row[2] for row in rows(text))


def test_nothing_is_described_that_does_not_exist():
    described = {heading for heading in sections("###") if "`" in heading}
    described |= {
        heading for heading in sections("###") if " " not in heading and heading != "Arrays"
    }
    assert described == {heading_of(kind) for kind in STRUCTS}


@pytest.mark.parametrize("name", REQUEST_TUPLES)
def test_each_socket_takes_what_the_document_says(name):
    sockets = {row[0]: row for row in rows(sections("##")["Sockets"])}
    socket = sockets[f"`{name}`"]
    assert re.findall(r"`(\w+)`", socket[2]) == [tag_of(kind) for kind in REQUEST_TUPLES[name]]


def requests() -> list[type[Request]]:
    every = (kind for kinds in REQUEST_TUPLES.values() for kind in kinds)
    return [kind for kind in dict.fromkeys(every) if issubclass(kind, Request)]


@pytest.mark.parametrize("kind", requests(), ids=lambda kind: kind.__name__)
def test_every_request_is_described_with_its_answers(kind):
    text = sections("###")[heading_of(kind)]
    answers = re.search(r"^Answer: (.+)\.$", text, flags=re.MULTILINE)
    tags = set(re.findall(r"`(\w+)`", answers[1]))
    # The docstring of a request names its replies behind an arrow; any may be a Failure instead.
    announced = re.search(r"→ ([^.;]+)", kind.__doc__)[1]
    named = {getattr(messages, name) for name in re.findall(r"[A-Z]\w+", announced)}
    replies = {each for each in named if issubclass(each, Reply) and each is not Failure}
    assert tags == {tag_of(each) for each in replies}
    assert bool(re.search(r"\bbody\b", text)) is kind.has_body


@pytest.mark.parametrize("kind", requests(), ids=lambda kind: kind.__name__)
def test_a_request_that_has_the_fields_of_a_base_says_so(kind):
    text = sections("###")[heading_of(kind)]
    named = re.findall(r"the fields of\s+\[(\w+)\]\(#(\w+)\)", text)
    base = kind.__base__
    assert named == ([] if base is Request else [(base.__name__, base.__name__.lower())])


def test_an_entry_of_a_batch_is_described_with_each_of_its_elements():
    described = {
        row[0].strip("`"): (row[1], row[3])
        for row in rows(sections("###")["Several calls in one trip"])
        if len(row) == 4
    }
    call = {
        field.name: (type_words(field.type), default_words(field)) for field in own_fields(Call)
    }
    assert list(described) == [field.name for field in dataclasses.fields(BatchEntry)]
    assert described == {name: call[name] for name in described}


def test_the_examples_of_a_batch_are_read():
    text = sections("###")["Several calls in one trip"]
    asked, answered = re.findall(r"^(\{.+\})$", text, flags=re.MULTILINE)
    batch = Codec(messages.RELAY_REQUESTS).decode([asked.encode()]).message
    assert isinstance(batch, Batch)
    entries = read_entries(batch.calls)
    assert [each.method for each in entries] == ["set_voltage", "measure", "voltage"]
    answer = Codec(messages.REPLIES).decode([answered.encode()]).message
    assert isinstance(answer, BatchResult)
    done, failed = read_outcomes(answer.outcomes, len(entries))
    assert (done.value, done.error) == (None, None)
    assert isinstance(failed.error, OSError)
    # The two forms of an outcome, as the table has them, are those that are written.
    forms = {row[0] for row in rows(text) if len(row) == 2}
    assert forms == {"`[value]`", "`[name, text, detail]`"}
    lengths = {form.count(",") + 1 for form in forms}
    assert {len(each) for each in write_outcomes([done, failed])} == lengths


def test_what_is_kept_of_calls_is_what_the_code_keeps():
    text = sections("##")["Calls that run at most once"]
    numbers = {int(number.replace(" ", "")) for number in re.findall(r"\d+(?: \d{3})*", text)}
    memory = Memory()._asdict()
    del memory["sessions"]  # so many that nobody has to know
    minutes = int(memory.pop("seconds") / 60)
    assert {minutes, *memory.values()} <= numbers


def kinds_of_node_events() -> list[list[str]]:
    return rows(sections("###")["Kinds of node events"])


def test_every_kind_of_a_node_event_is_described():
    """Those are texts in the code: all that a relay publishes, where it does."""
    published = {
        kind
        for module in (call_watch, calls, lease_desk, states)
        for kind in re.findall(
            r"""(?:_tell|_news|_publish)\((?:"event", )?"(\w+)", """, inspect.getsource(module)
        )
    }
    assert published >= {"alive", "lease"}
    described = {row[0].strip("`") for row in kinds_of_node_events()}
    assert described == (published - {"state"}) | set(driver_events.CUSTOMARY) | {"any other"}
    assert published - {"state"} == driver_events.RESERVED


def test_every_fact_of_a_relay_is_described():
    told = inspect.getsource(RelayFacts.status) + inspect.getsource(RelayAgent._member_facts)
    facts = set(re.findall(r'^ +"(\w+)": ', told, flags=re.MULTILINE))
    described = {row[0].strip("`"): row[1] for row in rows(sections("###")["Facts of a relay"])}
    assert set(described) == facts
    held = leases.Held(3, "owner", "ana", "T sweep", 10.0, 0.0, 10.0)
    assert set(re.findall(r"`(\w+)`", described["lease"])) == set(held.facts(1.0))


def test_the_changes_of_a_lease_are_described():
    (text,) = (row[1] for row in kinds_of_node_events() if row[0] == "`lease`")
    described = re.match(r"map of `change`: ([^;]+);", text)[1]
    assert set(re.findall(r"`(\w+)`", described)) == {"granted", *get_args(leases.Ending)}
    held = leases.Held(3, "owner", "ana", "T sweep", 10.0, 0.0, 10.0)
    ended = leases.Ended(held, "broken", 5.0, by="bob", why="fire")
    for name in (*held.news(), *ended.news()):
        assert f"`{name}`" in text


def test_each_link_within_the_document_leads_somewhere():
    headings = re.findall(r"^#+ (.+)$", DOCUMENT, flags=re.MULTILINE)
    places = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT))
    assert links <= places


def test_every_reply_is_an_answer_to_something():
    answers = re.findall(r"^Answer: (.+)\.$", DOCUMENT, flags=re.MULTILINE)
    tags = {tag for answer in answers for tag in re.findall(r"`(\w+)`", answer)}
    assert tags | {"error"} == {tag_of(kind) for kind in messages.REPLIES}


def test_every_error_is_described():
    described = {
        row[0].strip("`"): (int(row[1]), row[2].strip("`"), row[3], row[4])
        for row in rows(sections("##")["Errors"])
    }
    ran = {None: "not known", False: "no", True: "yes"}
    expected = {
        name: (kind.code, kind.__name__, ran[kind.executed], "yes" if kind.retryable else "no")
        for name, kind in errors.wire_names().items()
    }
    assert described == expected


def test_every_extension_type_is_described():
    described = {int(row[0]) for row in rows(sections("###")["MessagePack extension types"])}
    assert described == {-1, *msgpack_values.Unpacking()._read}


def test_every_tag_of_json_is_described():
    text = sections("###")["Tags in JSON"]
    described = {re.match(r'`\{"(\$\w+)"', row[0])[1] for row in rows(text)}
    assert described == {"$map", *json_values._LEAVES}


def test_every_topic_is_described():
    text = sections("##")["Events"].partition("###")[0].partition("| topic | published by ")[2]
    described = {row[0].strip("`").partition(".")[0] for row in rows(f"|{text}")}
    assert described == set(topics.FAMILIES)


@pytest.mark.parametrize("payload", [b"", b"\xc0", b"\0" * 20_000])
def test_events_are_put_together_and_taken_apart_as_its_python_does_it(payload):
    (code,) = re.findall(r"```python\n(.*?)```", sections("##")["Events"], re.DOTALL)
    names = {}
    exec(compile(code, "wire.md", "exec"), names)
    parts = b"event.psu-1", b"header" * 100, payload
    frame = names["put_together"](*parts)
    assert frame == joined(*parts)
    seal = sealed(b"stamp")
    for message in ([frame + seal], [frame, seal]):
        assert names["taken_apart"](message) == (*parts, b"stamp")


def test_the_limits_are_those_of_the_code():
    text = sections("##")["Limits"]
    numbers = {int(number.replace(" ", "")) for number in re.findall(r"\d+(?: \d{3})*", text)}
    limits = Limits()
    for name in limits.__slots__:
        assert getattr(limits, name) in numbers, name
    assert {msgpack_values.FRAME_BYTES, MAX_EVENT_BYTES, MAX_BATCH, MAX_CALL_BYTES} <= numbers
    frames = [row[1] for row in rows(text) if row[0].startswith("frame at ")]
    assert sorted(frames) == sorted(
        f"{size:,} bytes".replace(",", " ") for size in MAX_FRAME_BYTES.values()
    )


def packs_text() -> str:
    return sections("###")["Several messages in one frame"]


def test_the_example_of_a_pack_is_one():
    lines = re.findall(r"^ {4}((?:[0-9a-f]+ )+) +(.+)$", packs_text(), flags=re.MULTILINE)
    (lead, _), *members = lines
    headers = [bytes.fromhex(content) for content, _ in members]
    frame = bytes.fromhex(lead) + b"".join(headers)
    assert packs.is_pack(frame)
    assert packs.pack(headers) == frame
    assert packs.unpack(frame) == headers
    codec = Codec(messages.RELAY_REQUESTS)
    written = [message.encode() for _, message in members]
    assert len(written) == 2
    for header, text in zip(headers, written, strict=True):
        assert codec.decode([header]).message == codec.decode([text]).message


def test_the_limits_of_packs_are_those_of_the_code():
    limits = {packs.MAX_PACK, packs.MAX_PACK_BYTES}
    numbers = re.findall(r"\d+(?: \d{3})*", packs_text())
    assert {*limits, packs.MAX_MEMBER_BYTES} <= {int(each.replace(" ", "")) for each in numbers}
    held = {row[0]: row[1] for row in rows(sections("##")["Limits"])}
    assert {int(re.sub(r"\D", "", held[each])) for each in ("messages of a pack", "pack")} == limits


def test_every_socket_lets_the_largest_pack_in():
    sockets = (MAX_FRAME_BYTES[role] for role in ("directory", "relay", "ingest", "retrieve"))
    assert packs.MAX_PACK * packs.MAX_MEMBER_BYTES + 3 <= packs.MAX_PACK_BYTES <= min(sockets)


def test_the_first_bytes_of_a_pack_are_those_of_the_code():
    first, last, long = (int(each, 16) for each in re.findall(r"`(0x\w+)`", packs_text()))
    described = {*range(first, last + 1), long}
    # An empty one begins as a pack, and is none.
    assert {each for each in range(256) if packs.is_pack(bytes([each]))} == {0x90, *described}


def test_the_messages_whose_values_travel_in_buffers_are_named():
    text = sections("###")["MessagePack extension types"]
    named = re.search(r"4096 bytes and more in (.+?) travel in\s+buffers", text, flags=re.DOTALL)[1]
    tags = {tag_of(kind) for kind in STRUCTS if getattr(kind, "value_fields", ())}
    assert set(re.findall(r"`(\w+)`", named)) == tags


def test_the_version_is_that_of_the_code():
    assert f"protocol version {messages.PROTOCOL_VERSION}" in DOCUMENT


def test_the_json_example_works():
    example = sections("##")["A call, by hand"]
    request, result, failure, write = re.findall(r"^(\{.+\})$", example, flags=re.MULTILINE)
    call = Codec(messages.RELAY_REQUESTS).decode([request.encode()])
    assert isinstance(call.message, Call)
    assert call.json
    writing = Codec(messages.RELAY_REQUESTS).decode([write.encode()]).message
    assert writing == Call(id="2", method="voltage", access="set", args=[2.5])
    caller = Codec(messages.REPLIES)
    for answer in (result, failure):
        decoded = caller.decode([answer.encode()])
        assert decoded.message.id == call.message.id
        assert caller.encode(decoded.message, json=True) == [answer.encode()]
