"""docs/wire.md against the code: every message, field, answer, topic, extension type and error."""

import inspect
import json
import re
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect as types

from labmesh import errors
from labmesh.protocol import json_values, messages, msgpack_values, topics
from labmesh.protocol.codec import Codec, Limits
from labmesh.protocol.messages import Call, Message, Reply, Request
from labmesh.transport.publisher import MAX_EVENT_BYTES
from labmesh.transport.sockets import MAX_FRAME_BYTES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")

STRUCTS = [
    kind
    for kind in vars(messages).values()
    if inspect.isclass(kind)
    and issubclass(kind, msgspec.Struct)
    and kind.__module__ == messages.__name__
    and kind is not Message
]
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
    if kind.__struct_config__.tag is not None and kind not in (Request, Reply):
        return f"`{tag_of(kind)}` ({kind.__name__})"
    return kind.__name__


def own_fields(kind: type[msgspec.Struct]) -> list[types.Field]:
    """The fields that a struct adds to Request or Reply."""
    declared = types.type_info(kind)
    assert isinstance(declared, types.StructType)
    inherited = {
        name
        for base in (Request, Reply)
        if issubclass(kind, base) and kind is not base
        for name in base.__struct_fields__
    }
    return [field for field in declared.fields if field.name not in inherited]


def type_words(declared: types.Type) -> str:
    """A field's type with its limits, as the document writes it."""
    match declared:
        case types.StrType(pattern=messages.ID_PATTERN):
            return "id"
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
        case types.FloatType(gt=None):
            return "number"
        case types.FloatType(gt=above, le=most):
            return f"number, over {above:g} to {most:g}"
        case types.BoolType():
            return "boolean"
        case types.BytesType():
            return "bytes"
        case types.AnyType():
            return "value"
        case types.ListType(item_type=each):
            return f"list of {type_words(each)}"
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
        return f"`{json.dumps(field.default_factory())}`"
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
    assert tags <= {tag_of(reply) for reply in messages.REPLIES}
    # The docstring of a request names its replies behind an arrow.
    announced = re.findall(r"→ ([\w* ,]+?)(?:[,.]| or | then | once | when |$)", kind.__doc__)
    assert {tag_of(getattr(messages, name.strip("* "))) for name in announced} <= tags
    assert ("body" in text.lower()) is kind.has_body


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
    text = sections("##")["Events"].partition("###")[0]
    described = {row[0].strip("`").partition(".")[0] for row in rows(text)}
    assert described == set(topics.FAMILIES)


def test_the_limits_are_those_of_the_code():
    text = sections("##")["Limits"]
    numbers = {int(number.replace(" ", "")) for number in re.findall(r"\d+(?: \d{3})*", text)}
    limits = Limits()
    for name in limits.__slots__:
        assert getattr(limits, name) in numbers, name
    assert {msgpack_values.FRAME_BYTES, MAX_EVENT_BYTES, *MAX_FRAME_BYTES.values()} <= numbers


def test_the_version_is_that_of_the_code():
    assert f"protocol version {messages.PROTOCOL_VERSION}" in DOCUMENT


def test_the_json_example_works():
    example = sections("##")["A call, by hand"]
    request, result, failure = re.findall(r"^(\{.+\})$", example, flags=re.MULTILINE)
    call = Codec(messages.RELAY_REQUESTS).decode([request.encode()])
    assert isinstance(call.message, Call)
    assert call.json
    caller = Codec(messages.REPLIES)
    for answer in (result, failure):
        decoded = caller.decode([answer.encode()])
        assert decoded.message.id == call.message.id
        assert caller.encode(decoded.message, json=True) == [answer.encode()]
