"""labmesh.toml: defaults, the commented example, and every way to get the file wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from labmesh.config import (
    BankTable,
    BrokerTable,
    ClientTable,
    Config,
    RelayEntry,
    RelayTable,
    RetentionEntry,
    SecurityTable,
    example_config,
    find_config,
    from_options,
    load_config,
    read_toml,
)
from labmesh.errors import ConfigError

PSU = '[[relays]]\nid = "psu-1"\ndriver = "lab.psu:PSU"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str | bytes) -> str:
    content = text.encode() if isinstance(text, str) else text
    Path("labmesh.toml").write_bytes(content)
    return "labmesh.toml"


def refused(text: str | bytes) -> str:
    """The one line with which a file of this content is refused."""
    with pytest.raises(ConfigError) as error:
        load_config(write(text))
    line = str(error.value)
    assert line.isprintable(), "one line, without control characters"
    assert line.startswith("labmesh.toml")
    assert len(line) < 500
    return line


# ── defaults ────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_file_is_a_mesh_on_this_machine(folder: Path) -> None:
    config = load_config(write(""))
    assert config == Config(path=Path("labmesh.toml"))
    assert config.broker == BrokerTable(
        rpc_bind="tcp://*:5750",
        xsub_bind="tcp://*:5751",
        xpub_bind="tcp://*:5752",
        ttl_seconds=30,
        address="127.0.0.1",
    )
    assert config.relay == RelayTable(
        default_rpc_bind="tcp://*:5850",
        state_interval=1.0,
        broker_rpc="tcp://BROKER:5750",
        broker_xsub="tcp://BROKER:5751",
        heartbeat_seconds=5,
        upload_timeout=10,
        upload_retries=5,
        upload_chunk=1_000_000,
        spool_dir=None,
        spool_limit="10 GB",
        default_address="127.0.0.1",
    )
    assert config.bank == BankTable(
        ingest_bind="tcp://*:5761",
        retrieve_bind="tcp://*:5762",
        default_data_dir="./bank_data",
        broker_rpc="tcp://BROKER:5750",
        broker_xsub="tcp://BROKER:5751",
        heartbeat_seconds=5,
        default_address="127.0.0.1",
    )
    assert config.client == ClientTable(
        broker_rpc="tcp://BROKER:5750",
        broker_xpub="tcp://BROKER:5752",
        default_address="127.0.0.1",
        call_limit=600,
    )
    assert config.security == SecurityTable(mode="auto", network="labmesh", insecure=False)
    assert config.relays == ()


def test_no_file_is_all_defaults() -> None:
    assert load_config() == Config()
    assert load_config(None).path is None


def test_a_table_keeps_the_defaults_that_it_does_not_name(folder: Path) -> None:
    config = load_config(write("[broker]\nttl_seconds = 2.5\n"))
    assert config.broker == BrokerTable(ttl_seconds=2.5)
    assert config.relay == RelayTable()


def test_a_loaded_config_cannot_be_changed(folder: Path) -> None:
    config = load_config(write("[broker]\nttl_seconds = 3\n"))
    with pytest.raises(AttributeError):
        config.broker.ttl_seconds = 4  # type: ignore[misc]


def test_whole_seconds_are_seconds(folder: Path) -> None:
    ttl = load_config(write("[broker]\nttl_seconds = 3\n")).broker.ttl_seconds
    assert (type(ttl), ttl) == (float, 3.0)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf[broker]\nttl_seconds = 7\n",
        b"[broker]\r\nttl_seconds = 7\r\n",
        b"\xef\xbb\xbf# caf\xc3\xa9\r\n[broker]\r\nttl_seconds = 7",
    ],
)
def test_files_that_windows_editors_write_are_read(folder: Path, content: bytes) -> None:
    assert load_config(write(content)).broker.ttl_seconds == 7


def test_a_path_object_is_a_path(folder: Path) -> None:
    write("[client]\ncall_limit = 5\n")
    config = load_config(folder / "labmesh.toml")
    assert config.client.call_limit == 5
    assert config.path == folder / "labmesh.toml"


# ── the example ─────────────────────────────────────────────────────────────────────────────────


def test_the_example_is_the_defaults_and_one_simulated_relay(folder: Path) -> None:
    relay = RelayEntry(id="Inst-0", driver="labmesh.instruments.simulated:PowerSupply")
    assert load_config(write(example_config())) == Config(
        relays=(relay,), path=Path("labmesh.toml")
    )


def test_the_example_has_every_key_under_its_heading() -> None:
    # A key without a default of its own stands there as a comment.
    document = tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", example_config()))
    tables = {name: set(table) for name, table in document.items() if name != "relays"}
    assert tables == {
        field.name: set(msgspec.structs.asdict(getattr(Config(), field.name)))
        for field in msgspec.structs.fields(Config)
        if field.name not in ("relays", "path")
    }
    assert set(document["relays"][0]) == set(RelayEntry.__struct_fields__)


def test_the_example_is_plain_text_of_readable_lines() -> None:
    assert example_config().isascii()
    assert max(map(len, example_config().splitlines())) <= 100


# ── relays ──────────────────────────────────────────────────────────────────────────────────────


def test_relays_come_in_the_order_of_the_file(folder: Path) -> None:
    text = PSU + (
        '[[relays]]\nid = "dmm"\ndriver = "lab.dmm:Meter.Fast"\nargs = [1, "COM3"]\n'
        'kwargs = { baud = 9600 }\npoll = 0.5\nbind = "tcp://127.0.0.1:5851"\n'
        'read_only = ["read", "get_*"]\nrequire_lease = true\n'
    )
    assert load_config(write(text)).relays == (
        RelayEntry(
            id="psu-1", driver="lab.psu:PSU", args=[], kwargs={}, poll=None, bind="tcp://*:*"
        ),
        RelayEntry(
            id="dmm",
            driver="lab.dmm:Meter.Fast",
            args=[1, "COM3"],
            kwargs={"baud": 9600},
            poll=0.5,
            bind="tcp://127.0.0.1:5851",
            read_only=["read", "get_*"],
            require_lease=True,
        ),
    )


def test_poll_goes_before_the_state_interval_of_all_relays(folder: Path) -> None:
    text = "[relay]\nstate_interval = 3\n" + PSU + PSU.replace("psu-1", "psu-2") + "poll = 0.5\n"
    config = load_config(write(text))
    assert [config.state_interval_s(relay) for relay in config.relays] == [3.0, 0.5]


def test_two_relays_of_one_id_are_refused(folder: Path) -> None:
    assert refused(PSU + PSU.replace("psu-1", "psu-2") + PSU) == (
        "labmesh.toml: [[relays]] entry 3 ('psu-1') id: entry 1 has the same id; "
        "expected an id of its own for each relay"
    )


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ('driver = "m:C"', 'entry 1 id: missing; expected an id such as "Inst-0"'),
        ('id = "a"', "entry 1 ('a') driver: missing; expected text such as \"module:Class\""),
        ('id = "a/b"\ndriver = "m:C"', "entry 1 ('a/b') id: id 'a/b' has a character that is not"),
        (
            'id = 5\ndriver = "m:C"',
            'entry 1 id: expected an id such as "Inst-0", found the number 5',
        ),
        ('id = "a"\ndrvier = "m:C"', "('a') drvier: unknown key; did you mean 'driver'?"),
        ('id = "a"\ndriver = "m:C"\npoll = 0', "poll: expected seconds, from 0.001 to 604800"),
        ('id = "a"\ndriver = "m:C"\npoll = true', "(a week), found true"),
        ('id = "a"\ndriver = "m:C"\nargs = "x"', "args: expected a list of arguments such as"),
        ('id = "a"\ndriver = "m:C"\nkwargs = [1]', "kwargs: expected a table of arguments such as"),
        ('id = "a"\ndriver = "m:C"\nread_only = "read"', "read_only: expected a list of names of"),
        ('id = "a"\ndriver = "m:C"\nread_only = [1]', 'such as ["measure", "get_*"]'),
        ('id = "a"\ndriver = "m:C"\nread_only = [""]', 'such as ["measure", "get_*"]'),
        ('id = "a"\ndriver = "m:C"\nrequire_lease = 1', "require_lease: expected true or false"),
        ('id = "a"\ndriver = "m:C"\nbind = "*:1"', "bind: address '*:1': the transport tcp:// is"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number_and_id(folder: Path, entry: str, wrong: str) -> None:
    line = refused(f"[[relays]]\n{entry}\n")
    assert line.startswith("labmesh.toml: [[relays]] entry 1")
    assert wrong in line


@pytest.mark.parametrize(
    "driver",
    ["", "lab.psu", "lab.psu:", ":PSU", "lab psu:PSU", "a:b:c", "1a:B", "a..b:C", "a:class"],
)
def test_a_driver_is_module_and_class(folder: Path, driver: str) -> None:
    line = refused(f'[[relays]]\nid = "a"\ndriver = "{driver}"\n')
    assert f"('a') driver: driver '{driver}' is not module:Class; write it like" in line


def test_a_driver_is_a_module_and_no_file(folder: Path) -> None:
    line = refused('[[relays]]\nid = "a"\ndriver = "psu.py:PSU"\n')
    assert "driver 'psu.py:PSU' names a file; write the module, without .py: psu:PSU" in line


def test_relays_stand_under_two_brackets_and_the_others_under_one(folder: Path) -> None:
    assert refused('[relays]\nid = "a"\n') == (
        "labmesh.toml: [[relays]]: expected entries under the heading [[relays]] (two brackets), "
        "found a table"
    )
    assert refused("relays = [5]\n") == (
        "labmesh.toml: [[relays]] entry 1: expected one table under the heading [[relays]], "
        "found the number 5"
    )
    assert refused("[[relay]]\nstate_interval = 1\n") == (
        "labmesh.toml: [relay]: expected one table under the heading [relay], found a list"
    )
    assert refused("broker = true\n").endswith("under the heading [broker], found true")


# ── unknown names ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[brokr]\n", "[brokr]: unknown table; did you mean 'broker'?"),
        ("[Relay]\n", "[Relay]: unknown table; did you mean 'relay' or 'relays'?"),
        ("[[relayz]]\n", "[relayz]: unknown table; did you mean 'relay' or 'relays'?"),
        (
            "[limits]\nx = 1\n",
            "[limits]: unknown table; the tables are "
            "[broker], [relay], [bank], [client], [security], [[relays]]",
        ),
        ('["a\\nb"]\n', "['a\\nb']: unknown table; the tables are"),
        (
            "ttl_seconds = 3\n",
            "ttl_seconds: this key stands above the first table; expected it in [broker]",
        ),
        (
            'broker_rpc = "x"\n',
            "broker_rpc: this key stands above the first table; "
            "expected it in [relay] or [bank] or [client]",
        ),
        ("zzz = 3\n", "zzz: this key stands above the first table; expected it in some table"),
        (
            "[relay]\nheartbeat_second = 5\n",
            "[relay] heartbeat_second: unknown key; did you mean 'heartbeat_seconds'?",
        ),
        ("[bank]\nupload_chunk = 5\n", "[bank] upload_chunk: unknown key; it belongs in [relay]"),
        (
            '[client]\nbroker_xsub = "x"\n',
            "[client] broker_xsub: unknown key; it belongs in [relay] or [bank]; "
            "did you mean 'broker_xpub' or 'broker_rpc'?",
        ),
        (
            "[security]\nzzz = 5\n",
            "[security] zzz: unknown key; the keys here are mode, network, insecure, keys_dir, "
            "password_role, audit_dir",
        ),
        ('[security]\n"a\\tb" = 5\n', "[security] 'a\\tb': unknown key; the keys here are"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(folder: Path, text: str, line: str) -> None:
    assert refused(text).startswith(f"labmesh.toml: {line}")


def test_the_password_is_in_no_file_and_not_repeated(folder: Path) -> None:
    line = refused('[security]\npassword = "hunter2"\n')
    assert "LMH_NETWORK_PASSWORD" in line
    assert "hunter2" not in line


def test_the_error_tells_a_program_where(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write("[bank]\nheartbeat_seconds = 0\n"))
    assert error.value.detail == {
        "file": "labmesh.toml",
        "table": "[bank]",
        "key": "heartbeat_seconds",
    }


# ── wrong values ────────────────────────────────────────────────────────────────────────────────

SECONDS = "expected seconds, from 0.001 to 604800 (a week), found"
BEAT = "expected seconds, from 0.001 to 3600 (an hour), found"
CHUNK = "expected bytes, a whole number from 65536 to 8388608, found"
ADDRESS = 'expected an address such as "tcp://*:5750", found'
DURATIONS = [
    ("broker", "ttl_seconds"),
    ("relay", "state_interval"),
    ("relay", "heartbeat_seconds"),
    ("relay", "upload_timeout"),
    ("bank", "heartbeat_seconds"),
    ("client", "call_limit"),
]


@pytest.mark.parametrize(("table", "key"), DURATIONS)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf", "1e9", "true", '"5 s"', "[5]"])
def test_a_duration_is_a_positive_finite_number(
    folder: Path, table: str, key: str, value: str
) -> None:
    line = refused(f"[{table}]\n{key} = {value}\n")
    assert line.startswith(f"labmesh.toml: [{table}] {key}: expected seconds, from 0.001 to ")


@pytest.mark.parametrize(
    ("table", "setting", "wrong"),
    [
        ("broker", 'ttl_seconds = "5s"', f"{SECONDS} the text '5s'"),
        ("broker", "ttl_seconds = 0", f"{SECONDS} the number 0"),
        ("broker", "ttl_seconds = 604801", f"{SECONDS} the number 604801"),
        ("broker", "ttl_seconds = nan", f"{SECONDS} the number nan"),
        ("broker", "ttl_seconds = true", f"{SECONDS} true"),
        ("broker", "ttl_seconds = []", f"{SECONDS} a list"),
        ("broker", "ttl_seconds = {}", f"{SECONDS} a table"),
        ("broker", "ttl_seconds = 2024-01-01", f"{SECONDS} a date"),
        ("broker", f"ttl_seconds = 0x{'f' * 5000}", f"{SECONDS} a whole number of more than 64"),
        ("relay", "heartbeat_seconds = 3601", f"{BEAT} the number 3601"),
        ("bank", "heartbeat_seconds = 3601", f"{BEAT} the number 3601"),
        ("relay", "upload_chunk = 65535", f"{CHUNK} the number 65535"),
        ("relay", 'spool_limit = "much"', 'is no amount of storage; write it like "10 GB"'),
        ("relay", "spool_limit = 10", "expected an amount of storage such as"),
        ("relay", 'spool_dir = ""', "expected a folder"),
        ("relay", "upload_chunk = 8388609", f"{CHUNK} the number 8388609"),
        ("relay", "upload_chunk = 1e6", f"{CHUNK} the number 1000000.0"),
        ("relay", "upload_retries = -1", "expected a whole number from 0 to 1000, found the"),
        ("relay", "upload_retries = false", "expected a whole number from 0 to 1000, found false"),
        ("broker", "rpc_bind = 5750", f"{ADDRESS} the number 5750"),
        ("broker", 'rpc_bind = "5750"', "address '5750': the transport tcp:// is missing; write"),
        ("broker", 'xsub_bind = "tcp://*:99999"', "port '99999' is not a number from 1 to 65535"),
        ("broker", 'xpub_bind = "ipc://x"', "transport 'ipc' is not supported, only tcp"),
        ("broker", 'address = "tcp://10.0.0.1:1"', "write a host alone, like 192.168.1.10"),
        ("broker", 'address = "0.0.0.0"', "0.0.0.0 means every interface, not one host"),
        ("relay", 'default_rpc_bind = "tcp://BROKER:1"', "BROKER stands for a host to connect to"),
        ("relay", 'broker_rpc = "tcp://*:5750"', "* means every interface, not one host"),
        ("relay", 'broker_xsub = "tcp://BROKER:0"', "a port to connect to must be a definite one"),
        ("relay", 'default_address = "*"', "* means every interface, not one host"),
        ("bank", 'ingest_bind = "tcp://*"', "the port is missing"),
        ("bank", 'retrieve_bind = ""', "the transport tcp:// is missing"),
        ("bank", 'broker_rpc = "tcp://a b:1"', "a space, line break or control character"),
        ("bank", 'broker_xsub = "tcp://::1:1"', "an IPv6 host needs brackets"),
        ("bank", 'default_address = ""', "neither a host name nor an IP address"),
        ("bank", 'default_data_dir = ""', "expected a folder (between double quotes a backslash"),
        ("bank", 'default_data_dir = "C:\\temp"', "written twice), found the text 'C:\\temp'"),
        ("client", 'broker_rpc = "BROKER"', "the transport tcp:// is missing"),
        ("client", 'broker_xpub = "udp://BROKER:1"', "transport 'udp' is not supported"),
        ("client", 'default_address = "300.1.1.1"', "neither a host name nor an IP address"),
        (
            "security",
            'network = "a b"',
            "'a b' has a character that is not allowed; the rule: 1 to",
        ),
        ("security", "insecure = 1", "expected true or false, found the number 1"),
        ("security", 'insecure = "no"', "expected true or false, found the text 'no'"),
        (
            "security",
            'mode = "pasword"',
            'expected "auto", "keys", "password" or "open", found the text \'pasword\'; '
            "did you mean 'password'?",
        ),
        (
            "security",
            "mode = 1",
            'expected "auto", "keys", "password" or "open", found the number 1',
        ),
        (
            "security",
            'password_role = "relay"',
            'expected "viewer", "operator" or "admin", found the text \'relay\'',
        ),
    ],
)
def test_a_wrong_value_is_one_line_with_what_was_expected_and_found(
    folder: Path, table: str, setting: str, wrong: str
) -> None:
    line = refused(f"[{table}]\n{setting}\n")
    assert line.startswith(f"labmesh.toml: [{table}] {setting.split(' = ')[0]}: ")
    assert wrong in line


@pytest.mark.parametrize("chunk", [65_536, 1_000_000, 8 * 2**20])
def test_chunks_from_64_kib_to_8_mib(folder: Path, chunk: int) -> None:
    assert load_config(write(f"[relay]\nupload_chunk = {chunk}\n")).relay.upload_chunk == chunk


def test_no_retry_at_all_is_a_choice(folder: Path) -> None:
    assert load_config(write("[relay]\nupload_retries = 0\n")).relay.upload_retries == 0


@pytest.mark.parametrize("mode", ["auto", "password", "open"])
def test_modes(folder: Path, mode: str) -> None:
    assert load_config(write(f'[security]\nmode = "{mode}"\n')).security.mode == mode


def test_ipv6_and_names_in_addresses(folder: Path) -> None:
    config = load_config(write('[broker]\nrpc_bind = "tcp://[::]:5750"\naddress = "fd00::1"\n'))
    assert config.broker.rpc_bind == "tcp://[::]:5750"
    assert config.broker.address == "fd00::1"


# ── files that are none ─────────────────────────────────────────────────────────────────────────


def test_a_missing_file_is_named_with_the_current_folder(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("labmehs.toml")
    assert str(error.value) == (
        f"labmehs.toml: no such file (the current folder is {folder}); 'labmesh init' writes one"
    )


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "conf").mkdir()
    with pytest.raises(ConfigError, match=r"^conf: cannot be read: "):
        load_config("conf")


def test_a_path_that_cannot_exist_is_refused_on_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_toml("lab\0mesh\n.toml")
    assert str(error.value).isprintable()
    assert "cannot be read" in str(error.value)


def test_another_encoding_is_refused_with_the_place(folder: Path) -> None:
    assert refused("# caf\u00e9\n".encode("latin-1")) == (
        "labmesh.toml: byte 6 is not UTF-8; save the file with that encoding"
    )
    assert "is not UTF-8" in refused("[broker]\n".encode("utf-16"))


@pytest.mark.parametrize(
    "text",
    [
        "[broker\n",
        "[broker]\nrpc_bind = \n",
        "[broker]\nttl_seconds = 1\nttl_seconds = 2\n",
        "[broker]\n[broker]\n",
        "[broker]\rttl_seconds = 3\r",
        "a = 2024-13-45\n",
        "a = 'b\n",
        f"a = {'9' * 5000}\n",
        "\0",
    ],
)
def test_what_is_not_toml_is_refused_on_one_line(folder: Path, text: str) -> None:
    assert refused(text).startswith("labmesh.toml: not valid TOML: ")


def test_endless_nesting_is_refused(folder: Path) -> None:
    assert refused("a = " + "[" * 100_000) == "labmesh.toml: not valid TOML: nested too deeply"


def test_a_windows_folder_between_double_quotes_is_explained(folder: Path) -> None:
    line = refused('[bank]\n\ndefault_data_dir = "C:\\Users\\lab"\n')
    assert line.endswith("; between double quotes write a backslash twice, or use single quotes")
    assert "backslash" not in refused("# C:\\Users\n[broker\n[bank]\n")


def test_a_windows_folder_between_single_quotes_is_a_folder(folder: Path) -> None:
    config = load_config(write("[bank]\ndefault_data_dir = 'C:\\Users\\lab'\n"))
    assert config.bank.default_data_dir == "C:\\Users\\lab"


# ── finding the file ────────────────────────────────────────────────────────────────────────────


def test_the_file_of_the_current_folder_is_found(folder: Path) -> None:
    assert find_config() is None
    write("[client]\ncall_limit = 9\n")
    found = find_config()
    assert found == folder / "labmesh.toml"
    assert load_config(found).client.call_limit == 9


def test_a_folder_of_that_name_is_not_found(folder: Path) -> None:
    (folder / "labmesh.toml").mkdir()
    assert find_config() is None


# ── options of commands ─────────────────────────────────────────────────────────────────────────


def test_options_replace_keys_and_leave_the_others() -> None:
    base = RelayTable(heartbeat_seconds=2.0, upload_retries=7)
    table = from_options(RelayTable, {"heartbeat_seconds": 3, "state_interval": None}, base)
    assert table == RelayTable(heartbeat_seconds=3.0, upload_retries=7)
    assert from_options(BrokerTable, {}) == BrokerTable()


def test_options_are_checked_as_keys_are() -> None:
    with pytest.raises(ConfigError, match=r"options: \[broker\] ttl_seconds: expected seconds"):
        from_options(BrokerTable, {"ttl_seconds": 0})
    with pytest.raises(ConfigError, match=r"options: \[\[relays\]\] driver: missing"):
        from_options(RelayEntry, {"id": "psu-1"})


# ── what a bank keeps ───────────────────────────────────────────────────────────────────────────


def test_the_rules_of_a_bank_come_in_the_order_of_the_file(folder: Path) -> None:
    text = (
        '[bank]\nquota = "500 GB"\ntrash_days = 7\nscrub_days = 0\nupload_idle_hours = 2.5\n'
        '[[bank.retention]]\nrelay = "Inst-*"\ntag = "raw"\nkeep_days = 90\n'
        '[[bank.retention]]\nname = "test-*"\nkind = "npy"\nkeep_last = 10\n'
    )
    bank = load_config(write(text)).bank
    assert (bank.quota, bank.trash_days, bank.scrub_days) == ("500 GB", 7, 0)
    assert bank.upload_idle_hours == 2.5
    assert bank.retention == (
        RetentionEntry(relay="Inst-*", tag="raw", keep_days=90),
        RetentionEntry(name="test-*", kind="npy", keep_last=10),
    )
    # Options of a command on top of a file leave them as they are.
    assert from_options(BankTable, {"trash_days": 1.0}, bank).retention == bank.retention


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[bank]\nquota = "many"\n', "labmesh.toml: [bank] quota: 'many' is no amount"),
        ("[bank]\ntrash_days = -1\n", "[bank] trash_days: expected days, from 0 to 36500"),
        ("[bank]\nupload_idle_hours = 0\n", "[bank] upload_idle_hours: expected hours"),
        (
            "[bank]\nretention = 3\n",
            "[bank] retention: expected entries under the heading [[bank.retention]], found the "
            "number 3",
        ),
        (
            "[[bank.retention]]\nkeep_day = 3\n",
            "labmesh.toml: [[bank.retention]] entry 1 keep_day: unknown key; did you mean",
        ),
        (
            "[[bank.retention]]\nkeep_days = 3\n[[bank.retention]]\nkeep_last = 0\n",
            "labmesh.toml: [[bank.retention]] entry 2 keep_last: expected a whole number from 1 on",
        ),
        (
            "[bank]\nretention = [3]\n",
            "labmesh.toml: [[bank.retention]] entry 1: expected one table under the heading",
        ),
    ],
)
def test_what_a_bank_cannot_keep_to_is_refused(folder: Path, text: str, said: str) -> None:
    assert said in refused(text)
