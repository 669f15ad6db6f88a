"""Logs, state, keys and jars on disk."""

import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from tidemill.stack import unprivileged
from tidemill.stack.control import socket_path
from tidemill.stack.keys import ensure_key_pair
from tidemill.stack.logs import LogFile, last_lines
from tidemill.stack.plan import Layout
from tidemill.stack.programs import Account
from tidemill.stack.servers import passwords
from tidemill.stack.spec import StackError
from tidemill.stack.state import process_started, read_state, write_private
from tidemill.stack.wheels import locked_jars, verify_jars


def test_a_log_rotates_at_a_line_and_keeps_a_bounded_number(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", bytes_max=10, kept=2)
    for n in range(6):
        log.write(b"line %d.....\n" % n)
    log.write(b"tail")
    log.close()
    assert (tmp_path / "a.log").read_bytes() == b"tail"
    assert (tmp_path / "a.log.1").read_bytes() == b"line 5.....\n"
    assert (tmp_path / "a.log.2").read_bytes() == b"line 4.....\n"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_line_is_never_cut_by_rotation(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", bytes_max=4)
    log.write(b"half of a ")
    log.write(b"line\n")
    log.close()
    assert (tmp_path / "a.log.1").read_bytes() == b"half of a line\n"


def test_the_last_lines_of_a_large_file_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert last_lines(path, 2, bytes_max=100) == ["line 998", "line 999"]
    assert last_lines(path, 0) == []
    assert last_lines(tmp_path / "none", 5) == []


def test_the_tail_of_a_log_that_is_opened_again_begins_there(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("before\nbroken o")
    log = LogFile(tmp_path / "a.log", bytes_max=29)
    assert log.tail(5) == []
    log.write(b"one\ntwo\n")
    assert log.tail(5) == ["one", "two"]
    log.write(b"three\n")
    log.write(b"four\n")
    assert log.tail(5) == ["four"], "the rest was rotated away"
    log.close()


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '{"name": "local"}', "\x00\x00"])
def test_a_state_that_is_none_is_like_no_state_and_such_passwords_are_told(tmp_path: Path, content: str) -> None:
    layout = Layout(tmp_path)
    layout.state_file.write_text(content)
    assert read_state(layout.state_file) is None
    layout.secrets_file.write_text(content)
    with pytest.raises(StackError, match=r"secrets\.json does not hold the servers' passwords"):
        passwords(layout)
    layout.secrets_file.unlink()
    assert passwords(layout) == passwords(layout)


def test_a_private_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_this_process_runs_and_a_pid_beyond_the_range_does_not() -> None:
    assert process_started(os.getpid()) is not None
    assert process_started(2**22 + 1) is None


def test_the_key_pair_belongs_together_and_is_kept(tmp_path: Path) -> None:
    signing, verify = tmp_path / "keys/signing.pem", tmp_path / "keys/verify.pem"
    ensure_key_pair(signing, verify)
    before = signing.read_bytes()
    verify.unlink()
    ensure_key_pair(signing, verify)
    assert signing.read_bytes() == before
    private = serialization.load_pem_private_key(before, password=None)
    public = serialization.load_pem_public_key(verify.read_bytes())
    assert isinstance(private, Ed25519PrivateKey)
    assert isinstance(public, Ed25519PublicKey)
    public.verify(private.sign(b"bundle"), b"bundle")
    assert stat.S_IMODE(signing.stat().st_mode) == 0o600


def test_a_changed_missing_or_extra_jar_is_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "good.jar"
    good.write_bytes(b"good")
    digest = "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c"
    verify_jars([good], {"good.jar": digest})
    with pytest.raises(StackError, match=r"differ from the locked ones: good\.jar"):
        verify_jars([good], {"good.jar": "0" * 64})
    with pytest.raises(StackError, match=r"gone\.jar"):
        verify_jars([good], {"good.jar": digest, "gone.jar": digest})
    with pytest.raises(StackError, match=r"good\.jar"):
        verify_jars([good], {})


def test_the_lock_names_the_broker_once() -> None:
    jars = locked_jars()
    assert "kafka_2.13-4.3.1.jar" in jars
    assert all(len(digest) == 64 for digest in jars.values())


def test_a_closed_home_is_seen_and_has_a_stand_in(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not unprivileged.enterable(closed)
    assert unprivileged.data_folder(closed, None) == closed / "postgres"
    assert unprivileged.outside(closed) != unprivileged.outside(tmp_path)


def test_the_stand_in_of_a_home_that_is_gone_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprivileged, "OPEN_FOLDER", tmp_path / "open")
    user = Account(uid=65534, gid=65534)
    for name in ("open", "kept", "gone"):
        (tmp_path / name).mkdir(mode=0o700)
    kept = unprivileged.data_folder(tmp_path / "kept", user).parent
    gone = unprivileged.data_folder(tmp_path / "gone", user).parent
    (tmp_path / "gone").rmdir()
    unprivileged.remove_abandoned()
    assert kept.exists()
    assert not gone.exists()


def test_stacks_that_start_at_one_time_sweep_without_stumbling_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "OPEN_FOLDER", tmp_path)
    for number in range(40):
        folder = tmp_path / f"{unprivileged.STAND_IN}{number}"
        (folder / "base").mkdir(parents=True)
        (folder / unprivileged.MARK).write_text(str(tmp_path / "gone"))
        for file in range(20):
            (folder / "base" / str(file)).touch()
    with ThreadPoolExecutor(8) as pool:
        for sweep in [pool.submit(unprivileged.remove_abandoned) for _ in range(8)]:
            sweep.result()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ours_is_not_a_link_that_someone_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprivileged, "OPEN_FOLDER", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "trap").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StackError, match="belongs to someone else"):
        unprivileged.own_folder("trap")
    assert stat.S_IMODE(unprivileged.own_folder("mine").stat().st_mode) == 0o755


def test_a_deep_folder_for_temporary_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("deep" * 30)))
    with pytest.raises(StackError, match="let TMPDIR name a folder with a shorter path"):
        socket_path(tmp_path)
