"""``manage.py bipsync_rotate_keys``: the operator changes keys at night, while the site goes on."""

import io
import threading
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command

from bipsync_django import lifecycle
from bipsync_django.exceptions import SecretUnreadable
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.grants import connect, expire, refresh_token_of, reload

pytestmark = pytest.mark.usefixtures("database")

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
def tokens(bipsync: SimulatedBipsync, settings: Any) -> list[BipsyncToken]:
    """Three grants that are encrypted with the old key; both keys are set by now."""
    settings.FIELD_ENCRYPTION_KEY = OLD
    made = [connect(bipsync, person=person) for person in bipsync.users]
    lifecycle.disconnect(made[2])
    settings.FIELD_ENCRYPTION_KEY = [NEW, OLD]
    return made


def run(*options: str) -> str:
    out = io.StringIO()
    call_command("bipsync_rotate_keys", *options, stdout=out)
    return out.getvalue()


def test_everything_is_on_the_new_key_and_works(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync, settings: Any
) -> None:
    before = [reload(token) for token in tokens]
    assert run("--dry-run") == "2 of 2 are on an older key.\n"
    assert [reload(token).access_token for token in tokens] == [b.access_token for b in before]
    assert run().splitlines() == [
        "2 of 2 were encrypted anew, 0 are left on an older key.",
        "The older keys can be taken out of FIELD_ENCRYPTION_KEY.",
    ]
    settings.FIELD_ENCRYPTION_KEY = NEW
    for token, was in zip(tokens[:2], before, strict=False):
        row = reload(token)
        assert (row.generation, row.status) == (was.generation, was.status)
        assert bipsync.is_alive(refresh_token_of(token))
        assert lifecycle.refresh(expire(token)).generation == was.generation + 1
    assert "0 of 2 were encrypted anew" in run()


def test_with_one_key_nothing_is_left_to_do(bipsync: SimulatedBipsync, settings: Any) -> None:
    connect(bipsync)
    assert run("--dry-run") == "0 of 1 are on an older key.\n"


def test_a_row_that_no_key_opens_stops_it_before_anything_is_changed(
    tokens: list[BipsyncToken], settings: Any
) -> None:
    settings.FIELD_ENCRYPTION_KEY = [NEW]
    before = [reload(token).access_token for token in tokens]
    with pytest.raises(CommandError, match="2 of 2 cannot be decrypted, so nothing was changed"):
        run()
    assert [reload(token).access_token for token in tokens] == before


def test_a_ciphertext_that_was_moved_there_stops_it_too(tokens: list[BipsyncToken]) -> None:
    first, second = (reload(token) for token in tokens[:2])
    BipsyncToken.objects.filter(pk=second.pk).update(access_token=first.access_token)
    with pytest.raises(CommandError, match=f"1 of 2 cannot be decrypted.*: {second.pk} "):
        run()
    assert reload(tokens[0]).access_token == first.access_token


def test_a_refresh_in_between_is_not_overwritten(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bipsync_django.lifecycle import encryption

    token = tokens[0]
    write: Any = vars(encryption)["write"]

    def refresh_first(rows: Any, **values: Any) -> int:
        monkeypatch.setattr(encryption, "write", write)
        lifecycle.refresh(expire(token))
        return int(write(rows, **values))

    monkeypatch.setattr(encryption, "write", refresh_first)
    assert not lifecycle.reencrypt(token)
    assert reload(token).generation == 2
    assert bipsync.is_alive(refresh_token_of(token))
    assert not lifecycle.is_on_old_key(reload(token)), "the refresh has seen to it"


def test_a_process_with_the_old_settings_is_noticed(
    tokens: list[BipsyncToken], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on writing with the key that is to go."""
    reencrypt = lifecycle.reencrypt

    def and_somebody_writes(token: BipsyncToken) -> bool:
        done = reencrypt(token)
        settings.FIELD_ENCRYPTION_KEY = [OLD, NEW]
        row = reload(token)
        sealed = row.seal("access_token", row.unseal("access_token") or "")
        BipsyncToken.objects.filter(pk=row.pk).update(access_token=sealed)
        settings.FIELD_ENCRYPTION_KEY = [NEW, OLD]
        return done

    monkeypatch.setattr(lifecycle, "reencrypt", and_somebody_writes)
    with pytest.raises(CommandError, match="Somebody still encrypts with an older key"):
        run()


def test_it_goes_on_where_it_was_interrupted(
    tokens: list[BipsyncToken], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        reencrypt = lifecycle.reencrypt
        calls: list[int] = []

        def interrupted(token: BipsyncToken) -> bool:
            if calls:
                raise KeyboardInterrupt
            calls.append(token.pk)
            return reencrypt(token)

        patched.setattr(lifecycle, "reencrypt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert run("--dry-run").startswith("1 of 2")
    assert run().startswith("1 of 2 were encrypted anew, 0 are left")


def test_beside_running_workers_no_grant_is_lost(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync, settings: Any
) -> None:
    """One thread changes keys again and again, another refreshes all the while."""
    stop, errors = threading.Event(), []

    def rotate() -> None:
        from django.db import connections

        try:
            while not stop.is_set():
                for token in tokens[:2]:
                    lifecycle.reencrypt(token)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        for generation in range(2, 12):
            for token in tokens[:2]:
                BipsyncToken.objects.filter(pk=token.pk).update(obtained_at="2020-01-01T00:00Z")
                assert lifecycle.refresh(expire(token)).generation == generation
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert all(bipsync.is_alive(refresh_token_of(token)) for token in tokens[:2])


def test_nothing_is_done_to_a_row_that_is_gone(tokens: list[BipsyncToken]) -> None:
    assert not lifecycle.reencrypt(BipsyncToken(pk=0))


def test_what_cannot_be_read_is_not_written(tokens: list[BipsyncToken], settings: Any) -> None:
    settings.FIELD_ENCRYPTION_KEY = NEW
    with pytest.raises(SecretUnreadable):
        lifecycle.reencrypt(tokens[0])
