"""What to do about a server that does not let us in: its own words say what is wrong, and seldom what to change."""

_TRUST = "let ssl_ca_file name the CA that signed the server's certificate, and connect to the name it is made out to"
_LOGIN = "check user name and password"
# What the errors of asyncpg, psycopg, redis-py and OpenSSL hold, in lower case.
_ADVICE = {
    "certificate verify failed": _TRUST,
    "certificate_verify_failed": _TRUST,
    "password authentication failed": _LOGIN,
    "invalid username-password pair": _LOGIN,
    "authentication required": _LOGIN,
    "no pg_hba.conf entry": "see that the server lets this user in from here, and set sslmode where it wants TLS",
    "rejected ssl upgrade": "the server does not speak TLS; set sslmode accordingly",
    "wrong_version_number": "the server does not speak TLS there",
    "closed in the middle of operation": "where the server wants TLS, set sslmode",
    "connection closed by server": "where the server wants TLS, write rediss:// in its URL",
}


def advice(error: BaseException) -> str:
    """Return what to do about an error, to be put behind its text; nothing where there is nothing to say.

    >>> advice(ValueError("FATAL: password authentication failed for user x"))
    '; check user name and password'
    """
    text = str(error).lower()
    return next((f"; {what}" for sign, what in _ADVICE.items() if sign in text), "")
