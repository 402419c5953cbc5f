"""The log as settings describe it, passwords included: what every command opens."""

from pathlib import Path

from pydantic import SecretStr

from ..errors import ConfigError
from .config import Settings
from .log import Log, Security, open_log

__all__ = ["open_configured"]


def open_configured(settings: Settings) -> Log:
    """The log of these settings, not yet entered. Raises ConfigError for a password that cannot be read."""
    broker = settings.broker
    security = Security(security_protocol=broker.security_protocol, sasl_mechanism=broker.sasl_mechanism)
    if broker.sasl_username is not None:
        security["sasl_username"] = broker.sasl_username
    password = secret("sasl_password", broker.sasl_password, broker.sasl_password_file)
    if password is not None:
        security["sasl_password"] = password
    if broker.ssl_ca_file is not None:
        security["ssl_ca_file"] = str(broker.ssl_ca_file)
    if broker.ssl_cert_file is not None:
        security["ssl_cert_file"] = str(broker.ssl_cert_file)
    if broker.ssl_key_file is not None:
        security["ssl_key_file"] = str(broker.ssl_key_file)
    password = secret("ssl_key_password", broker.ssl_key_password, broker.ssl_key_password_file)
    if password is not None:
        security["ssl_key_password"] = password
    return open_log(
        settings.log_url, ready_within_s=broker.deadline_s, compression=broker.compression, **security
    )


def secret(name: str, value: SecretStr | None, file: Path | None) -> str | None:
    """A password, from its setting or from the first line of its file; None where neither is set."""
    if file is None:
        return None if value is None else value.get_secret_value()
    try:
        text, *_ = file.read_text("utf-8").splitlines() or [""]
    except OSError as error:
        raise ConfigError(f"broker.{name}_file = {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"broker.{name}_file = {file} is not UTF-8 text") from None
    if not text:
        raise ConfigError(f"broker.{name}_file = {file} is empty")
    return text
