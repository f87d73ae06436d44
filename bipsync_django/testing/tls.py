"""TLS for the simulated Bipsync, with a certificate authority that nobody else trusts."""

import atexit
import shutil
import ssl
import tempfile
from pathlib import Path

__all__ = ["Authority"]


class Authority:
    """A certificate authority for tests, made anew each time.

    It needs the package ``trustme``, which the extra ``testing`` brings.

    Attributes:
        bundle: the path of a file with its certificate (PEM), for ``BIPSYNC["CA_BUNDLE"]``. The
            file is deleted when the process ends.

    Raises:
        ImportError: ``trustme`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import trustme
        except ImportError as error:
            raise ImportError(
                "A simulated Bipsync over https needs trustme: pip install bipsync-django[testing]"
            ) from error
        self._authority = trustme.CA(organization_name="Simulated Bipsync")
        folder = tempfile.mkdtemp(prefix="bipsync-tls-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.bundle = str(Path(folder) / "authority.pem")
        self._authority.cert_pem.write_to_path(self.bundle)

    def context(self, *hosts: str) -> ssl.SSLContext:
        """Return what a server needs to speak TLS as ``hosts`` (names or addresses)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*hosts).configure_cert(context)
        return context
