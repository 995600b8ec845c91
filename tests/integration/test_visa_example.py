"""The example with PyVISA: a real PyVISA session, at a simulated instrument, through a real relay.

The simulation (pyvisa-sim) stands where the instrument would: everything from the driver's call of
PyVISA to the client's numpy array is what a laboratory runs.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.hearing import Heard
from tests.support.oscilloscope import DRIVER, EXAMPLES, RESOURCE, VISA, read_directly
from tests.support.promptness import SLACK_S

from labmesh import DirectorClientAgent, RelayClient
from labmesh.errors import DriverError
from labmesh.instruments.loading import load_driver
from labmesh.testing import LocalMesh

TIMEOUT_S = 0.2


@pytest.fixture
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "visa_oscilloscope", raising=False)


@pytest.fixture
async def mesh(_examples_can_be_imported: None, tmp_path: Path) -> AsyncIterator[LocalMesh]:
    """A network with one relay for the oscilloscope."""
    driver = load_driver(DRIVER, [RESOURCE, VISA], {"timeout_s": TIMEOUT_S})
    async with LocalMesh({"scope-1": driver}, data_dir=tmp_path) as mesh:
        yield mesh


@pytest.fixture
async def client(mesh: LocalMesh) -> DirectorClientAgent:
    return await mesh.client()


@pytest.fixture
async def scope(client: DirectorClientAgent) -> RelayClient:
    return await client.get_relay_agent("scope-1")


async def test_scpi_queries_and_settings(scope: RelayClient) -> None:
    assert "SIMULATED" in await scope.identity()
    assert await scope.query("*OPC?") == "1"
    for seconds in (5e-4, 2e-4):
        assert await scope.set_timebase(seconds) == seconds
        assert await scope.timebase() == seconds
        assert read_directly("TIM:SCAL?").tolist() == [seconds]
    assert await scope.set_scale(channel=2, volts=0.05) == 0.05
    assert await scope.scale(2) == 0.05
    assert await scope.scale(1) != 0.05


async def test_waveforms_arrive_as_the_arrays_that_pyvisa_returns(scope: RelayClient) -> None:
    for channel in (1, 2):
        volts = await scope.waveform(channel)
        codes = await scope.waveform_codes(channel)
        for array, direct in (
            (volts, read_directly(f"WAV{channel}:ASC?")),
            (codes, read_directly(f"WAV{channel}:BYTE?", binary=True)),
        ):
            assert isinstance(array, np.ndarray)
            assert array.dtype == direct.dtype
            np.testing.assert_array_equal(array, direct)
        preamble = await scope.preamble(channel)
        assert volts.shape == (preamble["points"],)
        scaled = (codes.astype(float) - preamble["zero"]) * preamble["volts_per_code"]
        np.testing.assert_allclose(scaled, volts, atol=1e-12)
    assert volts.dtype == np.float64
    assert codes.dtype == np.uint8
    assert np.ptp(volts) > 0.1


async def test_the_state_is_published(client: DirectorClientAgent, scope: RelayClient) -> None:
    heard = Heard()
    client.on_state(lambda relay_id, state: heard((relay_id, state)))
    await scope.run()
    await heard.one(lambda item: item[0] == "scope-1" and item[1]["running"])
    await scope.stop()
    await scope.set_timebase(1e-3)
    _, state = await heard.one(lambda item: item[0] == "scope-1" and item[1]["timebase_s"] == 1e-3)
    assert state["running"] is False
    assert state["scale_v"] == [await scope.scale(1), await scope.scale(2)]


async def test_a_waveform_is_stored_in_the_bank_and_comes_back(
    mesh: LocalMesh, client: DirectorClientAgent, scope: RelayClient, tmp_path: Path
) -> None:
    volts = await scope.waveform(1)
    stored = io.BytesIO()
    np.save(stored, volts)
    announced = Heard()
    client.on_dataset(announced)
    dataset_id = await mesh.relays["scope-1"].upload(
        stored.getvalue(), name="waveform.npy", meta={"channel": 1, "identity": "simulated"}
    )
    dataset = await announced.one(lambda record: record["dataset_id"] == dataset_id)
    assert (dataset["relay_id"], dataset["meta"]["channel"]) == ("scope-1", 1)
    bank = await client.get_databank_agent(dataset["bank_id"])
    record = await bank.download(dataset_id, tmp_path / "waveform.npy")
    np.testing.assert_array_equal(np.load(record["path"]), read_directly("WAV1:ASC?"))


async def test_an_instrument_that_does_not_answer_is_an_error_and_the_next_call_works(
    scope: RelayClient,
) -> None:
    began = time.monotonic()
    with pytest.raises(DriverError) as raised:
        await scope.query("MEAS:JITTER?")
    took_s = time.monotonic() - began
    print(f"VISA time-out {TIMEOUT_S:g} s, told after {took_s:.2f} s: {raised.value}")
    error = raised.value
    assert error.exception_type == "pyvisa.errors.VisaIOError"
    assert str(error).startswith("VisaIOError: VI_ERROR_TMO (-1073807339)")
    assert (error.relay_id, error.method) == ("scope-1", "query")
    assert "visa_oscilloscope.py" in error.remote_traceback
    assert TIMEOUT_S <= took_s < TIMEOUT_S + SLACK_S
    assert (await scope.query("SYST:ERR?")).startswith("-100,")
    assert "SIMULATED" in await scope.identity()


async def test_a_setting_that_the_instrument_refuses_is_a_value_error(scope: RelayClient) -> None:
    before = await scope.timebase()
    with pytest.raises(ValueError, match="the instrument says -100"):
        await scope.set_timebase(1e6)
    with pytest.raises(ValueError, match="channels 1 and 2"):
        await scope.waveform(3)
    assert await scope.timebase() == before


# Other VISA libraries refuse the name when it is opened; pyvisa-sim gives empty answers.
@pytest.mark.filterwarnings("ignore:read string doesn't end with termination characters")
async def test_a_wrong_resource_name_is_an_error_for_the_caller_and_the_relay_goes_on(
    mesh: LocalMesh, client: DirectorClientAgent, scope: RelayClient
) -> None:
    await mesh.start_relay("lost", load_driver(DRIVER, ["TCPIP::elsewhere.lab::INSTR", VISA]))
    lost = await client.get_relay_agent("lost")
    for _ in range(2):
        with pytest.raises(ConnectionError, match="nobody answers at TCPIP::elsewhere") as raised:
            await lost.identity()
        assert isinstance(raised.value, DriverError)
        assert "TCPIP0::scope.lab::inst0::INSTR" in str(raised.value)
    assert "nobody answers" in (await lost.status()).facts["state_error"]
    assert "SIMULATED" in await scope.identity()


@pytest.mark.usefixtures("_examples_can_be_imported")
def test_a_name_that_is_no_instruments_is_refused_in_words() -> None:
    driver = load_driver(DRIVER, ["Inst 0", VISA])
    with pytest.raises(ConnectionError, match="Inst 0 is not the name of an instrument"):
        driver.identity()  # type: ignore[attr-defined]
