"""Why a broker lets nobody in, and what to do about it: the client itself only says that it cannot connect."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.metadata import MetadataRequest

_KNOCK_MS = 2_000


async def refusal(client: Mapping[str, Any]) -> str | None:
    """Knock once at each bootstrap address; return what a broker that is there holds against us, and the way out.

    None where a broker lets us in, or where none is there. The sentence never holds a secret; it names settings as
    `KafkaSettings` and the command line do. `client`: keyword arguments of any aiokafka client.
    """
    options = {name: value for name, value in client.items() if name != "bootstrap_servers"}
    for address in str(client["bootstrap_servers"]).split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            async with asyncio.timeout(_KNOCK_MS / 1000):
                connection = await create_conn(host.strip("[]"), int(port), request_timeout_ms=_KNOCK_MS, **options)
                try:
                    await connection.send(MetadataRequest([]))
                finally:
                    connection.close()
        except (KafkaError, OSError, TimeoutError) as error:
            if (advice := _advice(error, str(options["security_protocol"]), options)) is not None:
                return f"Kafka at {address.strip()} {advice}"
        else:
            return None
    return None


def _advice(error: Exception, protocol: str, options: Mapping[str, Any]) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"shows a certificate that is not trusted ({error.verify_message}): let ssl_cafile name the CA that signed "
            "it, and bootstrap the name that it is made out to"
        )
    if isinstance(error, ssl.SSLError):
        return f"does not shake hands over TLS ({error.reason}): see whether this port is one of TLS ({protocol} asked)"
    if isinstance(error, SaslAuthenticationFailed):
        return (
            f"does not accept user {options.get('sasl_plain_username')!r} by {options.get('sasl_mechanism')}: "
            "check sasl_username and sasl_password"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"does not take {options.get('sasl_mechanism')}: set sasl_mechanism to what the broker has enabled"
    if isinstance(error, KafkaConnectionError | ConnectionResetError | ConnectionAbortedError):
        return f"hangs up on {protocol}: set security_protocol to that of the broker's listener"
    return None
