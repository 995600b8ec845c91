"""A network with a password against those who have another one, or nearly the right one (I21).

    pytest tests/faults/test_bad_passwords.py -s

prints what became of each, and how long a refusal took by how much of the password was right.
"""

from __future__ import annotations

import statistics
import time
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import zmq
from tests.support.knocking import ADMITTED, BROKEN, REFUSED, Knock
from tests.support.peers import until
from tests.support.places import Places

from labmesh.transport.key_pairs import KeyPair, NetworkKeys
from labmesh.transport.keys import Security

RIGHT = "Ångström über dem Läser 42"
PATIENCE_MS = 5000
ROUNDS = 15


def derived(password: str) -> NetworkKeys:
    return NetworkKeys.from_password(password, "labmesh")


@contextmanager
def knocks(
    endpoint: str, tried: dict[str, tuple[KeyPair | None, bytes]]
) -> Iterator[dict[str, Knock]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with ExitStack() as opened:
        opened.callback(context.term)
        found = {}
        for name, keys in tried.items():
            found[name] = Knock(context, endpoint)
            opened.callback(found[name].close)
            found[name].knock(*keys)
        yield found


PASSWORDS = {
    "nothing like it": ("another word altogether", BROKEN),
    "all but the last character": (RIGHT[:-1], BROKEN),
    "one character more": (RIGHT + "0", BROKEN),
    "in capital letters": (RIGHT.upper(), BROKEN),
    "without accents": ("Angstrom uber dem Laser 42", BROKEN),
    "a NUL inside it": (RIGHT[:5] + "\0" + RIGHT[5:], BROKEN),
    "1 MB": (RIGHT * 40_000, BROKEN),
    "not UTF-8 in the environment": ("\udcff\udcfe" + RIGHT, BROKEN),
    "the right one": (RIGHT, ADMITTED),
    "its form NFC": (unicodedata.normalize("NFC", RIGHT), ADMITTED),
    "its form NFD": (unicodedata.normalize("NFD", RIGHT), ADMITTED),
    "white space around it": (f" {RIGHT}\r\n", ADMITTED),
}


async def test_only_the_whole_password_opens_the_network(places: Places) -> None:
    keys = derived(RIGHT)
    async with places.broker(security=Security("password", keys=keys)) as broker:
        tried: dict[str, tuple[KeyPair | None, bytes]] = {
            name: (derived(word).client, derived(word).server.public)
            for name, (word, _) in PASSWORDS.items()
        }
        expected = {name: must for name, (_, must) in PASSWORDS.items()}
        # Who has taken one half of the keys from somewhere.
        tried["the server's key, another client's"] = (derived("x").client, keys.server.public)
        expected["the server's key, another client's"] = REFUSED
        tried["the server's key as the client's"] = (keys.server, keys.server.public)
        expected["the server's key as the client's"] = REFUSED
        tried["none"] = (None, b"")
        expected["none"] = BROKEN
        with knocks(places.rpc, tried) as found:
            for name, knock in found.items():
                await until(lambda knock=knock: knock.look(), PATIENCE_MS / 1000, name)
        became = {name: knock.became for name, knock in found.items()}
        assert broker.uptime_s > 0
    for name, how in became.items():
        print(f"      I21  {name:40s} {how}")
    assert became == expected


async def test_a_refusal_does_not_tell_how_much_of_the_password_was_right(places: Places) -> None:
    shares = {"nothing": "?" * len(RIGHT), "half": RIGHT[:13] + "?" * 13, "all but one": RIGHT[:-1]}
    took_s: dict[str, list[float]] = {name: [] for name in shares}
    async with places.broker(security=Security("password", keys=derived(RIGHT))):
        for _ in range(ROUNDS):
            for name, word in shares.items():
                wrong = derived(word)
                began = time.perf_counter()
                with knocks(places.rpc, {name: (wrong.client, wrong.server.public)}) as found:
                    assert found[name].look(PATIENCE_MS) == BROKEN
                    took_s[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * statistics.median(each) for name, each in took_s.items()}
    print("refused after " + ", ".join(f"{each:.2f} ms ({name})" for name, each in medians.items()))
    # The keys of nearly the right word are as far from the right ones as any others.
    assert max(medians.values()) < 2 * min(medians.values()) + 5
