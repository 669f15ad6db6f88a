from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.settings import (
    GrpcSettings,
    KafkaSettings,
    PostgresSettings,
    RedisSettings,
    ServiceSettings,
    redacted,
    split_address,
    unknown_variables,
)
from tidemill_testkit.authority import Authority

STARS = "*" * 10


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TIDEMILL_SAMPLE_")

    redis: RedisSettings = RedisSettings()
    postgres: PostgresSettings = PostgresSettings()


def test_groups_are_read_from_the_environment_under_one_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_SAMPLE_KAFKA__BOOTSTRAP", "broker:1")
    monkeypatch.setenv("TIDEMILL_SAMPLE_GRPC__LISTEN", "127.0.0.1:5001")
    monkeypatch.setenv("TIDEMILL_SAMPLE_REDIS__URL", "unix:///run/redis.sock")
    monkeypatch.setenv("TIDEMILL_SAMPLE_TEST_HOP_DELAY_MS", "50")
    settings = Settings()
    assert settings.kafka.bootstrap == "broker:1"
    assert settings.grpc.listen == "127.0.0.1:5001"
    assert settings.redis.client_kwargs()["url"] == "unix:///run/redis.sock"
    assert settings.test_hop_delay_ms == 50


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().drain_s = 1
    with pytest.raises(ValidationError):
        Settings().kafka.bootstrap = "x"


@pytest.mark.parametrize("name", ["DRAIN_S", "STALL_S", "GRPC__DEFAULT_DEADLINE_S"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TIDEMILL_SAMPLE_{name}", value)
    with pytest.raises(ValidationError, match="finite"):
        Settings()


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_SAMPLE_POSTGRES__DSN", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("TIDEMILL_SAMPLE_REDIS__URL", "redis://:hunter2@h:6379/0")
    monkeypatch.setenv("TIDEMILL_SAMPLE_KAFKA__SASL_PASSWORD", "hunter2")
    settings = Settings()
    assert "hunter2" not in str(redacted(settings))
    assert "hunter2" not in repr(settings)


def test_a_misspelt_variable_is_told_with_the_name_that_was_meant() -> None:
    (sentence,) = unknown_variables(
        Settings, {"TIDEMILL_SAMPLE_KAFAK__BOOTSTRAP": "x", "TIDEMILL_SAMPLE_HTTP__LISTEN": "x", "HOME": "/"}
    )
    assert sentence == (
        "TIDEMILL_SAMPLE_KAFAK__BOOTSTRAP names no setting; did you mean TIDEMILL_SAMPLE_KAFKA__BOOTSTRAP?"
    )


def test_sasl_without_a_password_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs sasl_username and sasl_password"):
        KafkaSettings(security_protocol="SASL_SSL", sasl_username="u")


def test_sasl_and_tls_reach_the_client() -> None:
    kwargs = KafkaSettings(
        security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username="u", sasl_password=SecretStr("p")
    ).client_kwargs()
    assert kwargs["sasl_plain_password"] == "p"
    assert kwargs["sasl_mechanism"] == "SCRAM-SHA-512"
    assert kwargs["ssl_context"].check_hostname


def test_postgres_parts_and_dsn_give_the_same_address() -> None:
    parts = PostgresSettings(host="h", user="u", password=SecretStr("p@ss"), database="d", sslmode="disable")
    assert parts.url() == "postgresql://u:p%40ss@h:5432/d?sslmode=disable"
    assert (
        PostgresSettings(dsn=SecretStr(parts.url()))
        .url("postgresql+psycopg2")
        .startswith("postgresql+psycopg2://u:p%40")
    )
    socket = PostgresSettings(host="/run/pg", user="u", database="d", sslmode="disable")
    assert socket.url() == "postgresql://u@/d?sslmode=disable&host=%2Frun%2Fpg&port=5432"


def test_logical_names_survive_the_prefix() -> None:
    kafka = KafkaSettings(topic_prefix="x.")
    assert kafka.logical(kafka.physical("events.a")) == "events.a"


@pytest.mark.parametrize("address", ["localhost", "host:", "host:http"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # A port beyond 16 bits was taken modulo 65,536 by both servers.
        ("HTTP__LISTEN", "127.0.0.1:99999"),
        ("GRPC__LISTEN", "8080"),
        ("KAFKA__BOOTSTRAP", ""),
        ("KAFKA__BOOTSTRAP", "broker:http"),
        ("KAFKA__BOOTSTRAP", "broker:99999"),
        ("KAFKA__BOOTSTRAP", "one:1,,two:2"),
        ("KAFKA__TOPIC_PREFIX", "our/"),
    ],
)
def test_an_address_that_nothing_can_be_reached_at_is_a_wrong_setting(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TIDEMILL_SAMPLE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower().replace("__", ".")):
        Settings()


@pytest.mark.parametrize("bootstrap", ["broker", "broker:1", "a:1, b:2", "[::1]:9092", "10.0.0.1:9092"])
def test_brokers_are_hosts_with_or_without_a_port(bootstrap: str) -> None:
    assert KafkaSettings(bootstrap=bootstrap).bootstrap == bootstrap


def test_files_that_are_no_certificate_and_its_key_are_named_at_once(tmp_path: Path) -> None:
    text = tmp_path / "note.txt"
    text.write_text("no certificate\n")
    with pytest.raises(ValidationError, match=r"note\.txt is no PEM file"):
        GrpcSettings(tls_ca=str(text))
    one, other = (Authority(tmp_path / name, name).pair("server") for name in ("one", "other"))
    with pytest.raises(ValidationError, match="is not the key"):
        GrpcSettings(tls_cert=str(one.certificate), tls_key=str(other.key))
    GrpcSettings(tls_cert=str(one.certificate), tls_key=str(one.key))
    with pytest.raises(ValidationError, match="given with ssl_certfile"):
        KafkaSettings(ssl_keyfile=str(one.key))


def test_a_dsn_is_completed_by_the_other_settings_and_comes_first(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "tests").file
    rest = {"password": SecretStr("p@/s"), "sslmode": "verify-full", "ssl_ca_file": str(authority)}
    bare = PostgresSettings.model_validate({"dsn": "postgresql://u@h:1/d", **rest}).url()
    assert bare == f"postgresql://u:p%40%2Fs@h:1/d?sslmode=verify-full&sslrootcert={quote(str(authority), safe='')}"
    given = "postgresql://u:own@h/d?sslmode=require"
    assert PostgresSettings.model_validate({"dsn": given, "password": "p", "sslmode": "disable"}).url() == given
    socket = "postgresql:///d?host=%2Frun%2Fpg"
    assert PostgresSettings(dsn=SecretStr(socket)).url() == socket


def test_a_certificate_that_cannot_be_read_is_named_at_once(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(ValidationError, match=f"{path} is no file that this process may read"):
            GrpcSettings(tls_ca=str(path))


def test_a_refused_setting_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_SAMPLE_KAFKA__SASL_PASSWORD", "hush")
    monkeypatch.setenv("TIDEMILL_SAMPLE_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(ValidationError, match="needs sasl_username and sasl_password") as refused:
        Settings()
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p%40ss%2Fw@h:1/0", f"redis://:{STARS}@h:1/0"),
        ("rediss://h/0?password=hush&db=1", f"rediss://h/0?password={STARS}&db=1"),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_no_part_of_a_password_in_a_url_is_printed(url: str, shown: str) -> None:
    assert redacted(Settings(redis=RedisSettings(url=url)))["redis"]["url"] == shown


ADDRESSES = {"redis": "redis://u:{}@h:1/0", "postgres": "postgresql://u:{}@h:1/d"}


def refusal(name: str, password: str) -> str | None:
    """Return why an address with this password in it is refused; None where it is taken."""
    url = ADDRESSES[name].format(password)
    try:
        RedisSettings(url=url) if name == "redis" else PostgresSettings(dsn=SecretStr(url))
    except ValidationError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ADDRESSES)
@given(st.text("/#?@[]:%a1=&", min_size=1, max_size=12))
def test_a_password_in_an_address_is_read_as_it_was_meant_or_refused(name: str, password: str) -> None:
    assert refusal(name, quote(password, safe="")) is None
    refused = refusal(name, password)
    if set(password) & set("/#?@"):
        # In the same words whatever it holds.
        assert refused == refusal(name, "/")
        assert "/ # ? @ [ ] of a user name or password as %2F %23 %3F %40 %5B %5D" in str(refused)
    elif refused is None:
        read = urlsplit(ADDRESSES[name].format(password))
        assert (read.username, read.password, read.hostname, read.port) == ("u", password, "h", 1)


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_letter_that_unicode_takes_for_a_sign_of_addresses_is_not_quoted(name: str) -> None:
    assert refusal(name, "hush\N{ACCOUNT OF}") == refusal(name, "/")


@pytest.mark.parametrize("url", ["redis://h:S3cret/x", "S3cret", "http://h:1", "redis://h:1/0?password=S3@cret"])
def test_an_address_that_is_none_is_not_quoted_either(url: str) -> None:
    with pytest.raises(ValidationError, match="write redis://") as refused:
        RedisSettings(url=url)
    assert "S3" not in str(refused.value)


@pytest.mark.parametrize(
    "dsn", ["postgresql:///d?host=%2Frun%2Fpg", "postgres://u@a:1,b:2/d", "postgresql://[::1]:5432/d", "postgresql://"]
)
def test_an_address_may_leave_out_parts_and_name_several_hosts(dsn: str) -> None:
    assert PostgresSettings(dsn=SecretStr(dsn)).dsn == SecretStr(dsn)


def test_a_clusters_url_names_several_nodes_and_nobody_elses_does() -> None:
    url = "rediss://me:a,b@one:7000,two:7001,three/0"
    cluster = RedisSettings(url=url, cluster=True)
    assert cluster.client_kwargs()["url"] == "rediss://me:a,b@one:7000/0"
    assert cluster.further_nodes() == [("two", 7001), ("three", 6379)]
    assert redacted(Settings(redis=cluster))["redis"]["url"] == f"rediss://me:{STARS}@one:7000,two:7001,three/0"
    for alone in ("redis://h:1/0", "unix:///run/a,b.sock", "redis://:a,b@h:1/0"):
        assert RedisSettings(url=alone).client_kwargs()["url"] == alone
    for wrong, cluster_of in ((url, False), ("redis://one:1,two:x/0", True), ("redis://one:1,,two/0", True)):
        with pytest.raises(ValidationError):
            RedisSettings(url=wrong, cluster=cluster_of)
