"""What is sealed stays sealed, in its own row and column, or raises."""

import copy
import csv
import io
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib import admin
from django.contrib.auth.models import User
from django.core import serializers
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.serializers.base import DeserializationError
from django.db import connection, models, transaction
from django.db.models import Case, F, Func, Q, Value, When
from django.db.models.functions import Cast, Concat, Upper
from django.forms import modelform_factory
from django.forms.models import model_to_dict
from encrypted_model_fields import fields as encrypted_fields

from bipsync_django.exceptions import SecretUnreadable
from bipsync_django.fields import Sealed, SealedField, seal
from bipsync_django.models import BipsyncToken

pytestmark = pytest.mark.django_db

ACCESS, REFRESH = "eyJ0.access-secret.c2ln", "def50200-refresh-secret"
KEY, OTHER_KEY = "dGVzdC1vbmx5LWtleS10ZXN0LW9ubHkta2V5LTEyMzQ=", Fernet.generate_key().decode()


def make(subject: str = "ada", **values: Any) -> BipsyncToken:
    token = BipsyncToken(
        tenant="acme", kind="service", subject=subject, client_id="portal", **values
    )
    token.access_token = token.seal("access_token", ACCESS)
    token.refresh_token = token.seal("refresh_token", REFRESH)
    token.save()
    return token


def column(name: str, pk: int) -> str | None:
    """Return what is in the database, past the field."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {name} FROM bipsync_django_bipsynctoken WHERE id = %s", [pk])  # noqa: S608
        value: str | None = cursor.fetchone()[0]
    return value


def test_a_secret_comes_back_in_its_own_place() -> None:
    token = BipsyncToken.objects.get(pk=make().pk)
    assert token.unseal("access_token") == ACCESS
    assert token.unseal("refresh_token") == REFRESH


@pytest.mark.parametrize("secret", ["", "x", "é€\U0001f600", '"]\\', "\x00", "x" * 100_000])
def test_any_text_can_be_sealed(secret: str) -> None:
    assert seal(secret, "a", "b").unseal("a", "b") == secret


def test_nothing_in_the_database_is_plaintext() -> None:
    pk = make().pk
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM bipsync_django_bipsynctoken WHERE id = %s", [pk])
        row = repr(cursor.fetchall())
    assert "secret" not in row
    assert "def50200" not in row
    assert "eyJ0" not in row
    first, second = column("access_token", pk), column("refresh_token", pk)
    assert first != second
    assert first is not None
    assert first.startswith("gAAAAA"), "a Fernet token"


def test_sealing_twice_shows_no_likeness() -> None:
    assert seal("same", "a").ciphertext != seal("same", "a").ciphertext


def test_no_secret_is_null() -> None:
    token = make()
    token.refresh_token = None
    token.save()
    token = BipsyncToken.objects.get(pk=token.pk)
    assert token.refresh_token is None
    assert token.unseal("refresh_token") is None
    assert column("refresh_token", token.pk) is None
    assert BipsyncToken.objects.filter(refresh_token__isnull=True).count() == 1
    assert BipsyncToken.objects.filter(access_token__isnull=False).count() == 1


# --- shown nowhere


def test_a_sealed_value_shows_nothing() -> None:
    sealed = make().access_token
    assert sealed is not None
    shown = f"{sealed} {sealed!r} {[sealed]} {sealed!s:>10}"
    assert shown == "<sealed> <sealed> [<sealed>]   <sealed>"
    assert not hasattr(sealed, "__dict__")
    with pytest.raises(TypeError):
        json.dumps(sealed)


def test_rows_instances_and_forms_show_no_plaintext() -> None:
    token = make()
    fresh = BipsyncToken.objects.get(pk=token.pk)
    shown = repr(
        [
            list(BipsyncToken.objects.values()),
            list(BipsyncToken.objects.values_list()),
            list(BipsyncToken.objects.values("access_token")),
            list(BipsyncToken.objects.annotate(copy=F("access_token")).values("copy")),
            list(BipsyncToken.objects.values_list("access_token", flat=True).iterator()),
            list(BipsyncToken.objects.values_list("access_token", "refresh_token", named=True)),
            list(BipsyncToken.objects.raw("SELECT * FROM bipsync_django_bipsynctoken")),
            BipsyncToken.objects.in_bulk(),
            BipsyncToken.objects.aggregate(models.Max("access_token"), models.Min("refresh_token")),
            list(
                BipsyncToken.objects.annotate(
                    text=Cast("access_token", models.TextField())
                ).values()
            ),
            model_to_dict(fresh),
            vars(fresh),
            vars(token),
            fresh,
            pickle.dumps(fresh),
            serializers.serialize("json", [fresh]),
            serializers.serialize("xml", [fresh]),
            serializers.serialize("python", [fresh]),
        ]
    )
    assert "secret" not in shown
    assert "def50200" not in shown
    assert "access_token" not in model_to_dict(fresh)


def test_no_form_offers_the_column() -> None:
    assert "client_id" in modelform_factory(BipsyncToken, fields="__all__").base_fields
    assert not {"access_token", "refresh_token"} & set(
        modelform_factory(BipsyncToken, fields="__all__").base_fields
    )
    assert not BipsyncToken._meta.get_field("access_token").editable
    assert not SealedField(editable=True).editable


def test_the_admin_offers_the_column_nowhere(rf: Any) -> None:
    model_admin = admin.site._registry[BipsyncToken]
    request = rf.get("/")
    request.user = User(is_superuser=True, is_staff=True, is_active=True)
    shown = {*model_admin.get_fields(request), *model_admin.get_list_display(request)}
    assert shown
    assert not {"access_token", "refresh_token"} & shown


def test_a_sealed_value_can_be_copied_compared_and_pickled() -> None:
    sealed = seal("x", "a")
    for twin in (copy.copy(sealed), copy.deepcopy(sealed), pickle.loads(pickle.dumps(sealed))):  # noqa: S301
        assert twin == sealed
        assert hash(twin) == hash(sealed)
        assert twin.unseal("a") == "x"
    assert sealed != seal("x", "a")
    assert sealed != sealed.ciphertext


# --- round trips


def test_refreshing_and_deferring_keep_what_is_sealed() -> None:
    token = make()
    token.access_token = None
    token.refresh_from_db(fields=["access_token"])
    assert token.unseal("access_token") == ACCESS
    deferred = BipsyncToken.objects.defer("access_token").get(pk=token.pk)
    assert "access_token" not in vars(deferred)
    deferred.save()
    assert deferred.unseal("access_token") == ACCESS
    only = BipsyncToken.objects.only("tenant", "kind", "subject").get(pk=token.pk)
    assert only.unseal("refresh_token") == REFRESH


def test_saving_an_instance_writes_the_same_ciphertext_back() -> None:
    pk = make().pk
    before = column("access_token", pk)
    token = BipsyncToken.objects.get(pk=pk)
    token.save()
    BipsyncToken.objects.filter(pk=pk).update(access_token=token.access_token)
    BipsyncToken.objects.bulk_create(
        [token], update_conflicts=True, update_fields=["access_token"], unique_fields=["id"]
    )
    assert column("access_token", pk) == before


def test_an_export_as_an_admin_action_would_write_it_holds_no_plaintext() -> None:
    token = make()
    user = User.objects.create_user("ada")
    BipsyncToken.objects.filter(pk=token.pk).update(kind="person", user=user)
    columns = [field.name for field in BipsyncToken._meta.concrete_fields]
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(columns)
    writer.writerows(BipsyncToken.objects.values_list(*columns))
    for row in BipsyncToken.objects.all():
        writer.writerow([getattr(row, column) for column in columns])
    writer.writerows(User.objects.values_list("username", "bipsync_tokens__access_token"))
    text = sheet.getvalue()
    # Not even the ciphertext: a spreadsheet of everybody's is a copy that nobody looks after.
    assert text.count("<sealed>") == 5
    for part in ("secret", "eyJ0", "def50200", str(column("access_token", token.pk))):
        assert part not in text


def test_many_rows_are_written_at_once_and_each_opens_its_own() -> None:
    new = []
    for number in range(20):
        row = BipsyncToken(tenant="acme", kind="service", subject=str(number), client_id="portal")
        row.access_token = row.seal("access_token", f"{ACCESS}-{number}")
        new.append(row)
    BipsyncToken.objects.bulk_create(new, batch_size=7)
    for row in BipsyncToken.objects.iterator(chunk_size=7):
        assert row.unseal("access_token") == f"{ACCESS}-{row.subject}"
        assert row.refresh_token is None
        stored = column("access_token", row.pk)
        assert stored is not None
        assert "secret" not in stored


@pytest.mark.parametrize("format_", ["json", "xml", "jsonl"])
def test_dumpdata_holds_ciphertext_and_loaddata_brings_it_back(format_: str, tmp_path: Any) -> None:
    token = make()
    empty = make("grace")
    BipsyncToken.objects.filter(pk=empty.pk).update(access_token=None)
    before = column("access_token", token.pk)
    dump = tmp_path / f"dump.{format_}"
    call_command("dumpdata", "bipsync_django.BipsyncToken", format=format_, output=str(dump))
    text = dump.read_text()
    assert "secret" not in text
    assert before is not None
    assert before in text
    BipsyncToken.objects.all().delete()
    call_command("loaddata", str(dump), verbosity=0)
    loaded = BipsyncToken.objects.get(subject="ada")
    assert column("access_token", loaded.pk) == before
    assert (loaded.unseal("access_token"), loaded.unseal("refresh_token")) == (ACCESS, REFRESH)
    assert BipsyncToken.objects.get(subject="grace").access_token is None


def test_a_plaintext_in_a_fixture_is_refused() -> None:
    token = make()
    data = json.loads(serializers.serialize("json", [token]))
    data[0]["fields"]["access_token"] = ACCESS
    with pytest.raises(DeserializationError):
        list(serializers.deserialize("json", json.dumps(data)))


@pytest.mark.parametrize("tail", [" plaintext", "\nplaintext", "=plaintext", "==\n", ".x", "é"])
def test_a_ciphertext_with_a_plaintext_tail_is_refused(tail: str) -> None:
    column = SealedField(name="access_token")
    whole = seal("secret", "a").ciphertext
    assert column.to_python(whole) == Sealed(whole)
    for text in (whole + tail, tail + whole):
        with pytest.raises(TypeError, match="sealed values only"):
            column.to_python(text)


def test_a_check_of_the_whole_row_makes_no_sealed_value_of_a_plaintext() -> None:
    token = make()
    token.access_token = ACCESS  # type: ignore[assignment]
    with suppress(ValidationError, TypeError):
        token.full_clean()
    with pytest.raises(TypeError):
        token.save(update_fields=["access_token"])


# --- plaintext and expressions


Write = Callable[[BipsyncToken, Any], object]


def _save(token: BipsyncToken, value: Any) -> None:
    token.access_token = value
    token.save()


def _save_one_field(token: BipsyncToken, value: Any) -> None:
    token.access_token = value
    token.save(update_fields=["access_token"])


def _bulk_update(token: BipsyncToken, value: Any) -> None:
    token.access_token = value
    BipsyncToken.objects.bulk_update([token], ["access_token"])


def _bulk_upsert(token: BipsyncToken, value: Any) -> None:
    token.access_token = value
    BipsyncToken.objects.bulk_create(
        [token], update_conflicts=True, update_fields=["access_token"], unique_fields=["id"]
    )


def _update(token: BipsyncToken, value: Any) -> None:
    BipsyncToken.objects.filter(pk=token.pk).update(access_token=value)


def _update_or_create(token: BipsyncToken, value: Any) -> None:
    BipsyncToken.objects.update_or_create(pk=token.pk, defaults={"access_token": value})


def _insert(token: BipsyncToken, value: Any) -> None:
    BipsyncToken.objects.create(
        tenant="acme", kind="service", subject="new", client_id="x", access_token=value
    )


def _bulk_create(token: BipsyncToken, value: Any) -> None:
    new = BipsyncToken(
        tenant="acme", kind="service", subject="new", client_id="x", access_token=value
    )
    BipsyncToken.objects.bulk_create([new])


WRITES: list[Write] = [
    _save,
    _save_one_field,
    _bulk_update,
    _bulk_upsert,
    _update,
    _update_or_create,
    _insert,
    _bulk_create,
]
NOT_SEALED: dict[str, Any] = {
    "plaintext": "plaintext",
    "empty": "",
    "bytes": b"plaintext",
    "number": 7,
    "list": ["a"],
    "F": F("refresh_token"),
    "F of itself": F("access_token"),
    "Value": Value("plaintext"),
    "Value null": Value(None),
    "Case": Case(When(pk__gt=0, then=Value("plaintext")), default=F("access_token")),
    "Concat": Concat(F("access_token"), Value("x"), output_field=models.TextField()),
    "Upper": Upper("access_token"),
    "Func": Func(F("access_token"), function="LOWER"),
    "Subquery": models.Subquery(BipsyncToken.objects.values("access_token")[:1]),
    "sealed in a Value": Value(Sealed("x"), output_field=SealedField()),
}


@pytest.mark.parametrize("value", NOT_SEALED.values(), ids=NOT_SEALED)
@pytest.mark.parametrize("write", WRITES)
def test_what_is_not_sealed_is_not_written(write: Write, value: Any) -> None:
    token = make()
    before = column("access_token", token.pk)
    with pytest.raises(TypeError, match="access_token"), transaction.atomic():
        write(token, value)
    assert column("access_token", token.pk) == before
    assert BipsyncToken.objects.count() == 1


def test_a_bulk_update_of_sealed_values_is_refused_too() -> None:
    # It wraps each value in an expression, which would be written as it is.
    token = make()
    before = column("access_token", token.pk)
    with pytest.raises(TypeError, match="access_token"), transaction.atomic():
        BipsyncToken.objects.bulk_update([token], ["access_token"])
    BipsyncToken.objects.bulk_update([token], ["client_id"])
    assert column("access_token", token.pk) == before


@pytest.mark.parametrize(
    "lookup",
    [
        "",
        "__exact",
        "__iexact",
        "__in",
        "__contains",
        "__startswith",
        "__gt",
        "__regex",
        "__range",
        "__length",
    ],
)
def test_a_sealed_column_cannot_be_searched(lookup: str) -> None:
    make()
    value = ["a", "b"] if lookup in {"__in", "__range"} else "a"
    for build in (
        lambda: BipsyncToken.objects.filter(**{f"access_token{lookup}": value}),
        lambda: BipsyncToken.objects.exclude(**{f"access_token{lookup}": value}),
        lambda: BipsyncToken.objects.filter(Q(**{f"access_token{lookup}": value}) | Q(pk=1)),
        lambda: User.objects.filter(**{f"bipsync_tokens__access_token{lookup}": value}),
    ):
        with pytest.raises(TypeError, match="cannot be searched"):
            list(build())


def test_looking_for_a_sealed_value_is_refused_too() -> None:
    token = make()
    for value in (token.access_token, None):
        with pytest.raises(TypeError, match="cannot be searched"):
            BipsyncToken.objects.filter(access_token=value)
    with pytest.raises(TypeError):
        BipsyncToken.objects.get_or_create(access_token=token.access_token)


# --- what cannot be opened


def test_a_ciphertext_from_another_row_or_column_is_refused() -> None:
    ada, grace = make("ada"), make("grace")
    BipsyncToken.objects.filter(pk=ada.pk).update(
        access_token=grace.access_token, refresh_token=ada.access_token
    )
    moved = BipsyncToken.objects.get(pk=ada.pk)
    for name in ("access_token", "refresh_token"):
        with pytest.raises(SecretUnreadable, match="another row or column"):
            moved.unseal(name)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE bipsync_django_bipsynctoken SET access_token = refresh_token",
        "UPDATE bipsync_django_bipsynctoken SET access_token = (SELECT access_token FROM "
        "bipsync_django_bipsynctoken WHERE subject = 'grace')",
    ],
)
def test_a_ciphertext_that_was_copied_past_the_field_is_refused(statement: str) -> None:
    ada = make("ada")
    make("grace")
    with connection.cursor() as cursor:
        cursor.execute(f"{statement} WHERE subject = 'ada'")
    with pytest.raises(SecretUnreadable, match="another row or column"):
        BipsyncToken.objects.get(pk=ada.pk).unseal("access_token")


@pytest.mark.parametrize("change", [{"tenant": "globex"}, {"kind": "person"}, {"subject": "eve"}])
def test_a_row_that_becomes_somebody_elses_cannot_be_opened(change: dict[str, str]) -> None:
    token = make()
    BipsyncToken.objects.filter(pk=token.pk).update(**change)
    with pytest.raises(SecretUnreadable):
        BipsyncToken.objects.get(pk=token.pk).unseal("access_token")


def test_places_do_not_run_into_one_another() -> None:
    sealed = seal("x", "ab", "c")
    for place in (("a", "bc"), ("abc",), ("ab",), ("ab", "c", ""), ("c", "ab"), ()):
        with pytest.raises(SecretUnreadable):
            sealed.unseal(*place)
    # The value is not taken for a part of the place either.
    with pytest.raises(SecretUnreadable):
        seal("c", "ab").unseal("ab", "c")


def test_a_wrong_key_raises_and_the_ciphertext_survives_a_save(settings: Any) -> None:
    pk = make().pk
    before = column("access_token", pk)
    settings.FIELD_ENCRYPTION_KEY = OTHER_KEY
    token = BipsyncToken.objects.get(pk=pk)
    with pytest.raises(SecretUnreadable, match="FIELD_ENCRYPTION_KEY"):
        token.unseal("access_token")
    token.save()
    assert column("access_token", pk) == before, "not encrypted again"
    settings.FIELD_ENCRYPTION_KEY = KEY
    assert BipsyncToken.objects.get(pk=pk).unseal("access_token") == ACCESS


@pytest.mark.parametrize("broken", ["", "plaintext", "gAAAAA", "\x01", "é", "cut", "flipped"])
def test_a_damaged_ciphertext_raises(broken: str) -> None:
    token = make()
    whole = column("access_token", token.pk)
    assert whole is not None
    flipped = whole[:60] + ("A" if whole[60] != "A" else "B") + whole[61:]
    damaged = {"cut": whole[:-8], "flipped": flipped}.get(broken, broken)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE bipsync_django_bipsynctoken SET access_token = %s", [damaged])
    with pytest.raises(SecretUnreadable):
        BipsyncToken.objects.get(pk=token.pk).unseal("access_token")


@pytest.mark.parametrize(
    "content", ["5", "null", "true", "[]", "{}", '"text"', "not json", "[" * 100_000]
)
def test_what_another_encrypted_field_wrote_raises(content: str) -> None:
    foreign = Sealed(encrypted_fields.encrypt_str(content).decode())
    with pytest.raises(SecretUnreadable):
        foreign.unseal("acme", "service", "ada", "access_token")


@pytest.mark.parametrize("value", [5, None, ["x"], True])
def test_a_sealed_value_that_is_no_text_raises(value: object) -> None:
    foreign = Sealed(encrypted_fields.encrypt_str(json.dumps(["a", value])).decode())
    with pytest.raises(SecretUnreadable):
        foreign.unseal("a")


def test_what_cannot_be_opened_is_not_quoted() -> None:
    with pytest.raises(SecretUnreadable) as caught:
        Sealed("plaintext-secret").unseal("a")
    assert "secret-" not in str(caught.value)
    assert "plaintext" not in str(caught.value)


# --- keys


def test_several_keys_read_and_the_first_one_writes(settings: Any) -> None:
    old = make("old")
    settings.FIELD_ENCRYPTION_KEY = [OTHER_KEY, KEY]
    assert BipsyncToken.objects.get(pk=old.pk).unseal("access_token") == ACCESS
    new = make("new")
    assert new.unseal("access_token") == ACCESS
    settings.FIELD_ENCRYPTION_KEY = [OTHER_KEY]
    assert new.unseal("access_token") == ACCESS
    with pytest.raises(SecretUnreadable):
        old.unseal("access_token")


def test_another_setting_leaves_the_keys_alone(settings: Any) -> None:
    crypter = encrypted_fields.CRYPTER
    settings.LEEWAY = 3
    assert encrypted_fields.CRYPTER is crypter


# --- as a Django field


def test_the_field_describes_itself_to_migrations() -> None:
    field = SealedField(null=True)
    field.set_attributes_from_name("access_token")
    name, path, args, kwargs = field.deconstruct()
    assert (name, path, args, kwargs) == (
        "access_token",
        "bipsync_django.fields.SealedField",
        [],
        {"null": True},
    )
    assert field.db_type(connection) == "text"
    assert field.clone().null


def test_to_python_takes_ciphertext_and_nothing_else() -> None:
    field = BipsyncToken._meta.get_field("access_token")
    sealed = seal("x", "a")
    assert field.to_python(sealed) is sealed
    assert field.to_python(sealed.ciphertext) == sealed
    assert field.to_python(None) is None
    for value in (5, b"x", ["x"]):
        with pytest.raises(TypeError, match="sealed"):
            field.to_python(value)
