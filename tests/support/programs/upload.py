"""Upload bytes that can be made again from a seed: upload.py INGEST SIZE SEED; prints the id."""

from __future__ import annotations

import asyncio
import random
import sys

from labmesh.relay import upload_dataset


def content(size: int, seed: int) -> bytes:
    """The bytes of this seed."""
    return random.Random(seed).randbytes(size)


async def main(ingest: str, size: int, seed: int) -> None:
    """Upload them, and say under which id."""
    dataset_id = await upload_dataset(
        ingest, content(size, seed), relay_id="Inst-0", meta={"seed": seed}
    )
    print(f"uploaded {dataset_id}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
