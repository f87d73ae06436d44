"""What a site gets: a wheel, in an environment that has nothing else."""

import ast
import functools
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import lowest

ROOT = Path(__file__).parent.parent

SETTINGS = """
SECRET_KEY = "s" * 60
USE_TZ = True
DEBUG = False
ALLOWED_HOSTS = ["portal.example.org"]
ROOT_URLCONF = "site_urls"
LOGIN_URL = "bipsync:login"
STATIC_URL = "static/"
FIELD_ENCRYPTION_KEY = "Zm9yLXRoZS13aGVlbC10ZXN0LW9ubHktMTIzNDU2Nzg="
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "bipsync_django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "bipsync_django.middleware.BipsyncSessionMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTHENTICATION_BACKENDS = [
    "bipsync_django.backends.BipsyncBackend",
    "django.contrib.auth.backends.ModelBackend",
]
BIPSYNC = {
    "CLIENT": "acme",
    "CLIENT_ID": "portal",
    "CLIENT_SECRET": "env:BIPSYNC_CLIENT_SECRET",
    "SCOPES": ["users:read"],
}
"""

URLS = """
from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("bipsync/", include("bipsync_django.urls"))]
"""

LOOK = """
import django
django.setup()
from django.contrib.staticfiles import finders
from django.template.loader import get_template
import bipsync_django
assert "site-packages" in bipsync_django.__file__, bipsync_django.__file__
for name in ["base", "choose", "connect", "failure", "leave", "login_button", "signed_out"]:
    get_template(f"bipsync_django/{name}.html")
assert finders.find("bipsync_django/bipsync.css")
import bipsync_django.tasks, bipsync_django.testing
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of the sources by way of an sdist, so that MANIFEST.in is tried too.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def _run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def test_the_wheel_carries_what_the_app_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "bipsync_django"
    wanted = [
        path.relative_to(ROOT).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {
        "bipsync_django/py.typed",
        "bipsync_django/migrations/0001_initial.py",
        "bipsync_django/templates/bipsync_django/failure.html",
    } <= set(wanted)
    assert set(wanted) <= names
    assert not [name for name in names if name.startswith(("tests/", "sample_project/"))]


def test_the_wheel_works_in_an_environment_that_has_nothing_else(
    wheel: Path, tmp_path: Path
) -> None:
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    _run(python, "-m", "pip", "install", "-q", "-c", constraints, str(wheel), cwd=tmp_path)
    (tmp_path / "site_settings.py").write_text(SETTINGS)
    (tmp_path / "site_urls.py").write_text(URLS)
    environment = {"DJANGO_SETTINGS_MODULE": "site_settings", "PYTHONPATH": str(tmp_path)}
    environment["BIPSYNC_CLIENT_SECRET"] = "from the environment"
    manage = (python, "-W", "error", "-m", "django")
    assert "no issues" in _run(*manage, "check", cwd=tmp_path, env=environment)
    _run(*manage, "makemigrations", "--check", "--dry-run", cwd=tmp_path, env=environment)
    _run(*manage, "migrate", "--verbosity=0", cwd=tmp_path, env=environment)
    _run(python, "-W", "error", "-c", LOOK, cwd=tmp_path, env=environment)


# --- what is imported is declared, with a lowest version that is tried

# Declared for their fixtures and for what they bring along, without an import.
_NOT_IMPORTED = {"pytest-django"}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _distribution(module: str) -> str | None:
    """Return what has to be installed for ``module``, or ``None`` where Python itself has it."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "bipsync_django":
        return None
    found = {canonicalize_name(name) for name in _installed()[top]}
    # Several share the folder of a namespace, and are called as what they put there.
    (name,) = found if len(found) == 1 else found & {canonicalize_name(module)}
    return name


def test_every_import_is_declared_and_nothing_else() -> None:
    imported = {
        name
        for path in (ROOT / "bipsync_django").rglob("*.py")
        for module in _imported(path)
        if (name := _distribution(module)) is not None
    }
    assert imported | _NOT_IMPORTED == set(lowest.floors())


def test_what_the_package_always_imports_is_no_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    of_extras = {
        "boto3",
        "botocore",
        "azure-identity",
        "azure-keyvault-secrets",
        "pytest",
        "trustme",
    }
    for path in (ROOT / "bipsync_django").rglob("*.py"):
        names = {_distribution(module) for module in _imported(path)} - {None}
        is_apart = path.name == "secret_sources.py" or "testing" in path.parts
        assert names <= (always | of_extras if is_apart else always), path


def test_the_lowest_versions_are_constraints_for_all_that_is_declared() -> None:
    lines = dict(line.split("==") for line in lowest.constraints())
    floors = lowest.floors()
    assert floors.items() <= lines.items()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    newer = {str(canonicalize_name(name)): Version(one) for name, one in pinned.items()}
    assert all(Version(version) <= newer[name] for name, version in floors.items())
    # These come along with them, and have to fit.
    assert not {"redis", "msal", "s3transfer", "amqp"} & lines.keys()
    assert {"hypothesis", "playwright"} <= lines.keys()
