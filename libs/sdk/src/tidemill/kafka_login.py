"""How an existing Kafka is talked to, by the environment: for the command line, and for the local stack's services."""

import ssl
from collections.abc import Mapping
from typing import Any

PREFIX = "TIDEMILL_KAFKA_"
# Behind the prefix, and behind `TIDEMILL_<SERVICE>_KAFKA__` of each service.
NAMES = (
    "SECURITY_PROTOCOL",
    "SASL_MECHANISM",
    "SASL_USERNAME",
    "SASL_PASSWORD",
    "SSL_CAFILE",
    "SSL_CERTFILE",
    "SSL_KEYFILE",
)
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


class LoginError(ValueError):
    """A variable is missing or wrong; the message says which."""


def login(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the keyword arguments of every aiokafka client, the address aside. Raises `LoginError`."""
    given = {name: environment.get(PREFIX + name) or None for name in NAMES}
    protocol = given["SECURITY_PROTOCOL"] or "PLAINTEXT"
    if protocol not in PROTOCOLS:
        raise LoginError(f"{PREFIX}SECURITY_PROTOCOL is one of {', '.join(PROTOCOLS)}")
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.startswith("SASL"):
        if not (given["SASL_USERNAME"] and given["SASL_PASSWORD"]):
            raise LoginError(f"{protocol} needs {PREFIX}SASL_USERNAME and {PREFIX}SASL_PASSWORD")
        options["sasl_mechanism"] = given["SASL_MECHANISM"] or "PLAIN"
        options["sasl_plain_username"] = given["SASL_USERNAME"]
        options["sasl_plain_password"] = given["SASL_PASSWORD"]
    if protocol.endswith("SSL"):
        options["ssl_context"] = _tls(given["SSL_CAFILE"], given["SSL_CERTFILE"], given["SSL_KEYFILE"])
    return options


def _tls(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        files = ", ".join(filter(None, (ca, certificate, key)))
        raise LoginError(f"{PREFIX}SSL_…: {files}: {error.strerror or error}") from error
    return context
