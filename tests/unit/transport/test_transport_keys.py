"""The mode that a node runs in, and the keys that a password gives."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

from labmesh.errors import ConfigError
from labmesh.transport.key_pairs import NetworkKeys
from labmesh.transport.keys import Security

PUBLIC_OF_SERVERS = b"l0Y@cyEcvQO7@%M+?:^P7m4lnAnjD[CAwK*(&zw."
PUBLIC_OF_THOSE_WHO_CONNECT = b".4I:51VqBKHl.hNn5:D}lf[HkZP<{xQz)7!YBN!U"

WORD = {"LMH_NETWORK_PASSWORD": "correct horse battery staple"}


def test_without_anything_a_node_is_open_for_its_own_machine() -> None:
    security = Security.resolve(environ={})
    assert security.mode == "open"
    assert security.keys is None
    assert not security.insecure
    assert security.network == "labmesh"


def test_a_password_is_reason_enough_to_use_it() -> None:
    security = Security.resolve(environ=WORD)
    assert security.mode == "password"
    assert security.keys == NetworkKeys.from_password(WORD["LMH_NETWORK_PASSWORD"], "labmesh")


def test_an_empty_password_is_none() -> None:
    assert Security.resolve(environ={"LMH_NETWORK_PASSWORD": ""}).mode == "open"


def test_a_node_can_be_open_although_there_is_a_password() -> None:
    assert Security.resolve(mode="open", environ=WORD).keys is None
    assert Security.resolve(environ=WORD | {"LMH_SECURITY": "open"}).keys is None


def test_the_environment_comes_before_the_argument() -> None:
    environ = WORD | {"LMH_SECURITY": "password", "LMH_NETWORK": "basement", "LMH_INSECURE": "0"}
    security = Security.resolve(mode="open", network="attic", insecure=True, environ=environ)
    assert security.mode == "password"
    assert security.network == "basement"
    opened = Security.resolve(insecure=True, environ={"LMH_INSECURE": "0"})
    assert not opened.insecure


def test_the_argument_comes_before_the_default() -> None:
    security = Security.resolve(mode="open", network="attic", insecure=True, environ=WORD)
    assert (security.mode, security.network, security.insecure) == ("open", "attic", True)


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_insecure_by_the_environment(text: str) -> None:
    assert Security.resolve(environ={"LMH_INSECURE": text}).insecure


@pytest.mark.parametrize("text", ["", "0", "false", "No", "OFF"])
def test_not_insecure_by_the_environment(text: str) -> None:
    assert not Security.resolve(insecure=True, environ={"LMH_INSECURE": text}).insecure


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        ({"mode": "password"}, {}, "LMH_NETWORK_PASSWORD is not set"),
        ({}, {"LMH_SECURITY": "password", "LMH_NETWORK_PASSWORD": ""}, "is not set"),
        ({}, {"LMH_NETWORK_PASSWORD": " \t"}, "holds nothing but white space"),
        ({"mode": "key"}, {}, "'key' is not known; use 'auto', 'keys', 'password' or 'open'"),
        ({}, {"LMH_INSECURE": "perhaps"}, "LMH_INSECURE is 'perhaps'"),
        ({}, {"LMH_NETWORK": "a/b"}, "the network's name"),
        ({"network": "n" * 300}, {}, "the network's name"),
        ({}, {"LMH_NETWORK": "\udcff"}, "the network's name"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_what_to_do(
    arguments: dict[str, str], environ: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Security.resolve(**arguments, environ=environ)  # type: ignore[arg-type]


@pytest.mark.parametrize("password", ["x", "grün", "\udcff\udcfe", "p" * 100_000, "a\0b"])
def test_any_password_gives_keys(password: str) -> None:
    keys = NetworkKeys.from_password(password, "labmesh")
    for pair in (keys.server, keys.client):
        assert zmq.curve_public(pair.secret) == pair.public
        assert len(z85.decode(pair.secret)) == 32


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
        ("word", "word "),
        ("word", "\tword\r\n"),
    ],
    ids=["composed and decomposed", "a blank behind it", "white space around it"],
)
def test_what_people_take_for_one_word_is_one(one: str, other: str) -> None:
    assert NetworkKeys.from_password(one, "labmesh") == NetworkKeys.from_password(other, "labmesh")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("word", "Word"),
        ("word", "wor"),
        ("one word", "oneword"),
        ("one word", "one  word"),
        ("find", "\ufb01nd"),
        ("gr\u00fcn", "gr\udcfcn"),
    ],
    ids=["case", "beginning", "no blank", "two blanks", "ligature", "not UTF-8"],
)
def test_what_looks_alike_is_not_the_same(one: str, other: str) -> None:
    assert NetworkKeys.from_password(one, "labmesh") != NetworkKeys.from_password(other, "labmesh")


def test_the_keys_of_two_networks_words_and_sides_have_nothing_in_common() -> None:
    all_keys = [
        pair.secret
        for password, network in [("word", "labmesh"), ("word", "attic"), ("Word", "labmesh")]
        for keys in [NetworkKeys.from_password(password, network)]
        for pair in (keys.server, keys.client)
    ]
    assert len(set(all_keys)) == 6


def test_the_same_word_gives_the_same_keys_on_every_machine() -> None:
    """A constant: another one would cut a running network in two."""
    keys = NetworkKeys.from_password("word", "labmesh")
    assert keys.server.public == PUBLIC_OF_SERVERS
    assert keys.client.public == PUBLIC_OF_THOSE_WHO_CONNECT


def test_no_secret_is_in_a_repr() -> None:
    security = Security.resolve(environ=WORD)
    assert security.keys is not None
    assert "NetworkKeys" not in repr(security)
    for pair in (security.keys.server, security.keys.client):
        assert pair.secret.decode() not in repr(security.keys)
    assert WORD["LMH_NETWORK_PASSWORD"] not in repr(security) + repr(security.keys)
