"""Passwords and TLS by configuration, on a real broker; and that no secret is ever shown."""

import asyncio
import io
import json
import subprocess
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from driftline.errors import ConfigError
from driftline.stream.config import Settings, Sourced, effective, load
from driftline.stream.events import make_logger
from driftline.stream.log import Draft, open_log
from driftline.stream.opening import open_configured

from ..kafka.broker import KafkaBroker, free_ports, single_node_properties
from .running import Place, command, gaussian, read_all

SECRET, KEY_SECRET = "s3cret pass phrase", "key secret"
MASK = "**********"


@dataclass
class Secured:
    """A broker with a listener of each kind, and files for its clients."""

    broker: KafkaBroker
    ports: dict[str, int]
    directory: Path

    def url(self, listener: str) -> str:
        return f"kafka:127.0.0.1:{self.ports[listener]}"

    def settings(self, listener: str, **broker: object) -> Settings:
        return load(
            None,
            {},
            {
                "log": Sourced(self.url(listener), "test"),
                **{f"broker.{name}": Sourced(value, "test") for name, value in broker.items()},
            },
        )


def openssl(*arguments: str, within: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=within, check=True, capture_output=True)


def make_certificates(directory: Path) -> None:
    """An authority; a server's and a client's key with its certificate in one file; the client's key also
    apart and encrypted."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    openssl("req", "-x509", *curve, "-noenc", "-days", "2", "-subj", "/CN=authority",
            "-keyout", "ca.key", "-out", "ca.pem", within=directory)  # fmt: skip
    for name in ("server", "client"):
        openssl("req", "-x509", *curve, "-noenc", "-days", "2", "-subj", f"/CN={name}",
                "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1",
                "-addext", "basicConstraints=critical,CA:FALSE",
                "-keyout", f"{name}.key", "-out", f"{name}.crt", within=directory)  # fmt: skip
        both = (directory / f"{name}.key").read_text() + (directory / f"{name}.crt").read_text()
        (directory / f"{name}.pem").write_text(both)
    openssl("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", f"pass:{KEY_SECRET}",
            "-in", "client.key", "-out", "client.locked", within=directory)  # fmt: skip


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    make_certificates(directory)
    (directory / "password").write_text(SECRET + "\n")
    *ports, inside, controller = free_ports(5)
    named = dict(zip(("password", "tls", "both"), ports, strict=True))
    clients = ",".join(f"{name.upper()}://127.0.0.1:{port}" for name, port in named.items())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = single_node_properties(inside, controller) | {
        "listeners": f"{clients},INSIDE://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"{clients},INSIDE://127.0.0.1:{inside}",
        "listener.security.protocol.map": "PASSWORD:SASL_PLAINTEXT,TLS:SSL,BOTH:SASL_SSL,"
        "INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "INSIDE",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(directory / "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(directory / "ca.pem"),
        "listener.name.tls.ssl.client.auth": "required",
    }
    for listener in ("password", "both"):
        jaas = f"listener.name.{listener}."
        properties[f"{jaas}plain.sasl.jaas.config"] = f'{plain} user_anna="{SECRET}";'
        properties[f"{jaas}scram-sha-256.sasl.jaas.config"] = scram
        properties[f"{jaas}scram-sha-512.sasl.jaas.config"] = scram
    users = [f'SCRAM-SHA-{bits}=[name="anna",password="{SECRET}"]' for bits in (256, 512)]
    with KafkaBroker(
        directory / "broker", properties, bootstrap=f"127.0.0.1:{inside}", heap_mb=256, scram=users
    ) as broker:
        yield Secured(broker, named, directory)


async def write_and_read(settings: Settings, topic: str) -> None:
    async with open_configured(settings) as log:
        await log.create_topic(topic)
        await log.append([Draft(topic, b"k", b"v")])
        assert [record.value for record in await read_all(log, topic)] == [b"v"]


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_passwords(secured: Secured, mechanism: str) -> None:
    """The right one writes and reads; a wrong one is refused at once, and not after the deadline."""
    asked = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism, "sasl_username": "anna"}
    await write_and_read(secured.settings("password", sasl_password=SECRET, **asked), mechanism)
    file = secured.directory / "password"
    await write_and_read(secured.settings("password", sasl_password_file=file, **asked), f"{mechanism}-file")
    wrong = secured.settings("password", sasl_password="wrong one", **asked)
    async with asyncio.timeout(wrong.broker.deadline_s / 2):
        with pytest.raises(ConfigError, match="cannot be used with these settings") as refused:
            await open_configured(wrong).__aenter__()
    assert "wrong one" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.kafka
async def test_tls(secured: Secured) -> None:
    """With a certificate of ours, its key encrypted or in the same file; a server that we do not trust is
    refused at once."""
    files, tls = secured.directory, {"security_protocol": "SSL"}
    mine = {"ssl_cert_file": files / "client.crt", "ssl_key_file": files / "client.locked"}
    trust = {"ssl_ca_file": files / "ca.pem"}
    locked = secured.settings("tls", **tls, **trust, **mine, ssl_key_password=KEY_SECRET)
    await write_and_read(locked, "tls")
    one_file = secured.settings("tls", **tls, **trust, ssl_cert_file=files / "client.pem")
    await write_and_read(one_file, "tls-one-file")
    with pytest.raises(ConfigError, match="certificate verify failed"):
        await open_configured(
            secured.settings("tls", **tls, **mine, ssl_key_password=KEY_SECRET)
        ).__aenter__()
    with pytest.raises(ConfigError, match="certificate files of the Kafka connection cannot be used"):
        open_configured(secured.settings("tls", **tls, **trust, **mine, ssl_key_password="wrong"))
    with pytest.raises(ConfigError, match="certificate files of the Kafka connection cannot be used"):
        open_configured(secured.settings("tls", **tls, **trust, **mine))  # and OpenSSL does not ask for it


@pytest.mark.kafka
def test_the_commands_over_tls_with_a_password(secured: Secured, tmp_path: Path) -> None:
    """serve, feed and search, configured by the environment; what they print holds no password."""
    files = secured.directory
    settings = {
        "broker__security_protocol": "SASL_SSL", "broker__sasl_mechanism": "SCRAM-SHA-512",
        "broker__sasl_username": "anna", "broker__ssl_ca_file": files / "ca.pem",
        "broker__sasl_password": SECRET, "logging__level": "debug",
    }  # fmt: skip
    place = Place(secured.url("both"), "secured", tmp_path, **settings)
    np.save(tmp_path / "rows.npy", gaussian(20, 4, 0))
    names = {
        "log": place.url,
        "topics__vectors": place.vectors,
        "topics__search": place.search,
        "topics__replies": place.replies,
    }
    with place.service.start() as service:
        fed = command("feed", str(tmp_path / "rows.npy"), **names, **settings)
        assert fed.returncode == 0, fed.stderr
        after = ("--after", json.dumps({place.vectors: {"0": 20}}))
        found = command("search", "--key", "3", *after, "-k", "1", "--json", **names, **settings)
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["replies"][0]["hits"][0]["id"] == "3"
        assert service.stop() == 0
        printed = service.output.read_text() + fed.stdout + fed.stderr + found.stdout + found.stderr
    assert SECRET not in printed
    wrong = settings | {"broker__sasl_password": "wrong one"}
    refused = command("search", "--key", "3", **names, **wrong)
    assert refused.returncode == 2
    assert "cannot be used with these settings" in refused.stderr
    assert "wrong one" not in refused.stdout + refused.stderr


def test_half_of_the_settings_is_refused(tmp_path: Path) -> None:
    """Before anything is tried, for library users too."""
    url = "kafka:127.0.0.1:1"
    with pytest.raises(ConfigError, match="needs sasl_username and sasl_password"):
        open_log(url, security_protocol="SASL_PLAINTEXT", sasl_username="anna")
    with pytest.raises(ConfigError, match="security_protocol 'TLS': expected one of PLAINTEXT, SSL"):
        open_log(url, security_protocol="TLS")
    with pytest.raises(ConfigError, match="the certificate files of the Kafka connection cannot be used"):
        open_log(url, security_protocol="SSL", ssl_ca_file=str(tmp_path / "missing.pem"))


SASL = {"security_protocol": "SASL_SSL", "sasl_username": "anna"}


@pytest.mark.parametrize(
    ("broker", "reason"),
    [
        ({"security_protocol": "TLS"}, "'PLAINTEXT', 'SSL'"),
        ({"security_protocol": "SASL_SSL", "sasl_password": SECRET}, "needs broker.sasl_username"),
        ({**SASL}, "broker.sasl_password or broker.sasl_password_file"),
        ({**SASL, "sasl_password": SECRET, "sasl_password_file": "f"}, "give one of them"),
        ({"sasl_username": "anna", "sasl_password": SECRET}, "broker.sasl_password, broker.sasl_username"),
        ({"ssl_ca_file": "ca.pem"}, "broker.ssl_ca_file: means nothing while broker.security_protocol is"),
        ({"security_protocol": "SSL", "ssl_key_file": "k"}, "broker.ssl_cert_file"),
        ({**SASL, "sasl_password": 7013}, "broker.sasl_password = ********** (test): input should be"),
    ],
)
def test_settings_that_contradict_each_other(broker: dict[str, object], reason: str) -> None:
    """Are refused in words, which hold no secret, nor does the traceback."""
    with pytest.raises(ConfigError) as refused:
        load(None, {}, {f"broker.{name}": Sourced(value, "test") for name, value in broker.items()})
    assert reason in str(refused.value)
    told = "".join(traceback.format_exception(refused.value))
    assert SECRET not in told
    assert "7013" not in told


def test_secrets_are_masked(tmp_path: Path) -> None:
    """In what a settings object prints, in `driftline config`, and as a flag they are not taken at all."""
    given = {**SASL, "sasl_password": SECRET, "ssl_cert_file": "c", "ssl_key_password": KEY_SECRET}
    settings = load(None, {}, {f"broker.{name}": Sourced(value, "test") for name, value in given.items()})
    assert effective(settings)["broker.sasl_password"] == MASK
    for shown in (repr(settings), str(settings), json.dumps(effective(settings))):
        assert SECRET not in shown
        assert KEY_SECRET not in shown
    environment = {f"broker__{name}": str(value) for name, value in given.items()}
    for flags in ([], ["--json"]):
        told = command("config", "--data-dir", str(tmp_path), *flags, **environment)
        assert told.returncode == 0
        assert SECRET not in told.stdout
        assert MASK in told.stdout
    refused = command("config", "--set", f"broker.sasl_password={SECRET}")
    assert refused.returncode == 2
    assert "a command line is seen by everybody" in refused.stderr
    assert SECRET not in refused.stderr


def test_a_password_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Is named, with the reason."""

    def opened(content: bytes | None) -> str:
        file = tmp_path / "password"
        if content is not None:
            file.write_bytes(content)
        given = {**SASL, "sasl_password_file": file}
        settings = load(None, {}, {f"broker.{name}": Sourced(value, "test") for name, value in given.items()})
        with pytest.raises(ConfigError) as refused:
            open_configured(settings)
        return str(refused.value)

    assert "cannot be read: No such file" in opened(None)
    assert "is empty" in opened(b"\n")
    assert "is not UTF-8" in opened(b"\xff\xfe")


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_in_the_log_hold_no_values(form: str) -> None:
    """A password is a variable of the frames that connect."""

    def connect(password: str) -> None:
        raise ValueError(f"refused, {len(password)} characters")

    stream = io.StringIO()
    logger = make_logger(Settings.model_validate({"logging": {"format": form}}).logging, stream)
    try:
        connect(SECRET)
    except ValueError as error:
        logger.error("search.failed", exc_info=error)
    assert "connect" in stream.getvalue()
    assert SECRET not in stream.getvalue()
    assert "s3cret" not in stream.getvalue()
