from __future__ import annotations

import pytest

from labmesh.errors import ProtocolError
from labmesh.protocol.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10 GB", 10 * 10**9),
        ("1.5tb", 1_500_000_000_000),
        (" 512 MiB ", 512 * 2**20),
        ("64KiB", 65_536),
        ("3 kB", 3000),
        ("1000000", 10**6),
        ("1 B", 1),
        ("1 PiB", 2**50),
    ],
)
def test_an_amount_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "0.1 B", "-1 GB", "10 GBs", "1e3", "9999 PB"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ProtocolError, match='write it like "10 GB"'):
        parse_size(text)
