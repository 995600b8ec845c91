"""The code of a pairing, as people mistype it, and the life of an invitation."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import Conflict, Forbidden, ProtocolError
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Done, Ping, Request
from labmesh.protocol.pairing import (
    MAX_WRONG_CODES,
    PAIRING_REPLIES,
    PAIRING_REQUESTS,
    SECRET_BYTES,
    Admitted,
    AskInvitation,
    Authorize,
    ConfirmJoin,
    EndJoin,
    Invitation,
    Invited,
    PairingCode,
    Terms,
    parse_code,
)

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE = PairingCode("192.168.1.10", 5753, bytes(range(100, 110)))
TEXT = CODE.text
KEY, OTHER_KEY = "k" * 40, "o" * 40
TERMS = Terms(
    network="labmesh",
    name="ana",
    role="operator",
    broker_keys=("b" * 40,),
    broker_port=5750,
    relays=("psu-*",),
)
END = 600.0


# ── the code ────────────────────────────────────────────────────────────────────────────────────


def test_a_code_is_short_and_keeps_its_secret_to_itself() -> None:
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{4}-){6}[0-9A-HJKMNP-TV-Z]{4}", TEXT)
    assert repr(CODE) == "PairingCode(host='192.168.1.10', port=5753)"


@given(
    st.ip_addresses(v=4).map(str),
    st.integers(1, 65_535),
    st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
)
def test_a_code_is_read_as_it_was_written(host: str, port: int, secret: bytes) -> None:
    code = PairingCode("" if host == "0.0.0.0" else host, port, secret)
    assert parse_code(code.text) == code


def lookalikes(text: str) -> str:
    return text.replace("0", "o").replace("1", "l")


@pytest.mark.parametrize(
    "change",
    [
        str.lower,
        lookalikes,
        lambda text: lookalikes(text).upper().replace("L", "I"),
        lambda text: text.replace("-", ""),
        lambda text: text.replace("-", " "),
        lambda text: text.replace("-", "\N{EN DASH}"),
        lambda text: text.replace("-", "\N{NON-BREAKING HYPHEN}"),
        lambda text: text.replace("-", "", 2),
        lambda text: f" '{text}'\r\n",
        lambda text: text[:9] + "\n" + text[9:],
    ],
)
def test_what_people_do_to_a_code_does_not_matter(change) -> None:
    assert parse_code(change(TEXT)) == CODE


def test_every_single_wrong_character_and_every_swap_is_noticed() -> None:
    digits = TEXT.replace("-", "")
    wrong = {
        digits[:place] + each + digits[place + 1 :]
        for place in range(len(digits))
        for each in DIGITS
    }
    for first, second in combinations(range(len(digits)), 2):
        swapped = list(digits)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        wrong.add("".join(swapped))
    wrong.remove(digits)
    assert len(wrong) > 1000
    for each in wrong:
        with pytest.raises(ProtocolError):
            parse_code(each)


def resealed(digits: str) -> str:
    """The same with the check digit that fits."""
    for each in DIGITS:
        try:
            parse_code(digits[:-1] + each)
        except ProtocolError as exc:
            if "check digit" in str(exc):
                continue
        return digits[:-1] + each
    raise AssertionError(digits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the code is empty"),
        (" - - ", "the code is empty"),
        (TEXT[:-1], "27 characters, 1 missing: it has 7 groups of 4"),
        (TEXT + "00", "30 characters, 2 too many"),
        (TEXT[:6] + "U" + TEXT[7:], "character 2 of group 2 of the code is a U, and no code has"),
        (TEXT[:-1] + "!", "character 4 of group 7 of the code is '!', and a code has letters and"),
        ("Ä" + TEXT[1:], r"character 1 of group 1 of the code is '\xc4'"),
        ("labmesh keys join", "15 characters, 13 missing"),
        (TEXT[:-1] + DIGITS[DIGITS.index(TEXT[-1]) - 1], "its check digit does not fit"),
        (resealed("2" + TEXT.replace("-", "")[1:]), r"another version of labmesh \(2, here 1\)"),
        (resealed(TEXT.replace("-", "")[:-2] + "10"), "damaged, in several places"),
        (PairingCode("10.0.0.1", 0, bytes(SECRET_BYTES)).text, "damaged, in several places"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_without_the_code(text: str, words: str) -> None:
    with pytest.raises(ProtocolError, match=words.replace(r"\xc4", r"\\xc4")) as caught:
        parse_code(text)
    said = str(caught.value)
    assert "\n" not in said
    assert not any(group in said for group in TEXT.split("-"))


# ── an invitation ───────────────────────────────────────────────────────────────────────────────


def opened() -> Invitation:
    return Invitation(TERMS, ends_at=END)


def ask() -> AskInvitation:
    return AskInvitation(id="1")


def confirm(key: str = KEY) -> ConfirmJoin:
    return ConfirmJoin(id="2", key=key)


def end(key: str = KEY) -> EndJoin:
    return EndJoin(id="3", key=key)


def admitted() -> Invitation:
    invitation = opened()
    step = invitation.take(confirm(), 1.0)
    assert isinstance(step, Authorize)
    assert invitation.authorized(step) == Admitted(id="2")
    return invitation


def test_an_exchange_puts_one_key_on_the_list_and_ends() -> None:
    invitation = opened()
    assert invitation.take(ask(), 0.0) == Invited(id="1", terms=TERMS)
    step = invitation.take(confirm(), 1.0)
    assert isinstance(step, Authorize)
    grant = step.grant
    assert (grant.name, grant.role, grant.key) == ("ana", "operator", KEY)
    assert grant.relays == ("psu-*",)
    assert invitation.admitted is None, "not before it is on the disk"
    assert invitation.authorized(step) == Admitted(id="2")
    assert invitation.admitted == grant
    assert invitation.ending(1.0) is None
    assert invitation.take(end(), 2.0) == Done(id="3")
    assert invitation.ending(2.0) == "joined"
    assert invitation.ending(END) == "joined"
    with pytest.raises(Forbidden, match=r"over \(joined\): ask for a new one"):
        invitation.take(ask(), 2.0)


def test_a_key_that_could_not_be_put_on_the_list_leaves_the_code_good() -> None:
    invitation = opened()
    assert isinstance(invitation.take(confirm(), 1.0), Authorize)
    assert isinstance(invitation.take(confirm(OTHER_KEY), 2.0), Authorize)


def test_who_was_interrupted_may_come_again_and_nobody_else() -> None:
    invitation = admitted()
    assert invitation.take(ask(), 2.0) == Invited(id="1", terms=TERMS)
    assert invitation.take(confirm(), 2.0) == Admitted(id="2")
    for request in (confirm(OTHER_KEY), end(OTHER_KEY)):
        with pytest.raises(Conflict, match=r"used already, by .*'labmesh keys revoke ana'"):
            invitation.take(request, 3.0)
    assert invitation.take(end(), 4.0) == Done(id="3")


def test_the_end_comes_after_the_confirmation() -> None:
    with pytest.raises(ProtocolError, match="end_join comes after confirm_join"):
        opened().take(end(), 1.0)


def test_a_request_of_another_kind_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not answer Ping"):
        opened().take(Ping(id="1"), 1.0)


def test_it_ends_with_its_time() -> None:
    invitation = opened()
    assert invitation.ending(END - 0.001) is None
    assert invitation.ending(END) == "expired"
    with pytest.raises(Forbidden, match="expired"):
        invitation.take(confirm(), END)
    assert invitation.admitted is None


def test_it_ends_with_so_many_wrong_codes() -> None:
    invitation = opened()
    for _ in range(MAX_WRONG_CODES):
        assert invitation.ending(1.0) is None
        invitation.wrong_code()
    assert invitation.ending(1.0) == "wrong codes"
    with pytest.raises(Forbidden, match="wrong codes"):
        invitation.take(ask(), 1.0)


# ── on the wire ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "field",
    [
        {"name": "../ana"},
        {"network": ""},
        {"role": "broker"},
        {"broker_keys": []},
        {"broker_keys": ["b" * 40] * 5},
        {"broker_keys": ["b" * 39 + "\n"]},
        {"broker_port": 0},
        {"broker_port": 65_536},
        {"relays": ["r"] * 65},
        {"relays": [""]},
    ],
    ids=str,
)
def test_terms_over_a_limit_are_refused(field: dict[str, object]) -> None:
    told = {"type": "invited", "id": "1", "terms": {**msgspec.to_builtins(TERMS), **field}}
    with pytest.raises(ProtocolError):
        Codec(PAIRING_REPLIES).decode([msgspec.msgpack.encode(told)])


@pytest.mark.parametrize("message", [ask(), confirm(), end()], ids=lambda each: type(each).__name__)
def test_requests_travel(message) -> None:
    codec = Codec(PAIRING_REQUESTS)
    assert codec.decode(codec.encode(message)).message == message


def test_the_document_has_every_message_with_its_fields() -> None:
    document = Path(__file__).parents[3] / "docs" / "wire.md"
    section = document.read_text(encoding="utf-8").partition("\n## Pairing\n")[2]
    described = [
        set(re.findall(r"`(\w+)`", " ".join(cells)))
        for line in section.partition("\n## ")[0].splitlines()
        if line.startswith("| `")
        for cells in (line.split("|")[1:3], line.split("|")[3:5])
    ]
    written: list[set[str]] = []
    for request, reply in zip(PAIRING_REQUESTS, PAIRING_REPLIES, strict=False):
        for kind in (request, reply):
            own = set(kind.__struct_fields__) - set(Request.__struct_fields__)
            terms = set(Terms.__struct_fields__) if "terms" in own else set()
            written.append({str(kind.__struct_config__.tag), *own, *terms})
    assert described == written
