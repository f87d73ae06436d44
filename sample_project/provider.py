"""``python -m sample_project.provider``: the simulated Bipsync, knowing the portal's client secret.

The secret comes from its file, because everybody on a machine can read command lines.
"""

import sys

from bipsync_django.secret_sources import secret
from bipsync_django.testing.__main__ import main

from .settings import BIPSYNC

if __name__ == "__main__":
    client_secret = secret(str(BIPSYNC["CLIENT_SECRET"]))
    sys.exit(main([*sys.argv[1:], f"--client-secret={client_secret}"]))
