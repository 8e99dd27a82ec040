"""Pseudonyms of patients and studies, the same in every rerun by a key in the user's folder."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from osteojax.errors import UserError
from osteojax.files import write_text

KEY_FILE = "pseudonyms.key"
KEY_BYTES = 32


class Pseudonyms:
    """Makes pseudonyms. Without the key nobody can find out which id a pseudonym was made of."""

    def __init__(self, folder: Path) -> None:
        """Reads the key of `folder`, or makes one that only its owner can read.

        Raises:
          UserError: the key file is damaged.
        """
        path = folder / KEY_FILE
        if not path.exists():
            write_text(path, secrets.token_hex(KEY_BYTES) + "\n", private=True)
        text = path.read_text(encoding="ascii", errors="replace").strip()
        try:
            self._key = bytes.fromhex(text)
        except ValueError:
            self._key = b""
        if len(self._key) != KEY_BYTES:
            raise UserError(
                f"{path}: not a key of {KEY_BYTES} bytes. Bring the file back; with a new key all "
                "patients would get other pseudonyms."
            )

    def patient(self, patient_id: str, issuer: str) -> str:
        """ "p" and ten hexadecimal digits. issuer: of the id, since hospitals use the same ids."""
        return "p" + self._digest("patient", issuer, patient_id)

    def study(self, uid: str) -> str:
        """ "s" and ten hexadecimal digits."""
        return "s" + self._digest("study", uid)

    def _digest(self, *parts: str) -> str:
        message = "\0".join(parts).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:10]
