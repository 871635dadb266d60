"""Text of a stranger on its way to people: nothing that steers a terminal, no passwords."""

import re
import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories: control, format (bidirectional overrides), surrogates, private use, ends."""
_USER = re.compile(r"(?<=://)[^/?#\s'\"@]*:[^/?#\s'\"]*@|(?<=://)[^/?#\s'\"@:]+@")
_SECRET = re.compile(
    r"(?i)([?&;](?:[\w.-]*(?:token|secret|signature|password|passwd|credential|apikey|api_key)"
    r"[\w.-]*|sig|key)=)[^&#\s'\"]+"
)


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not seen spelled out (``\\x1b``), but those in `keep`."""
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _UNSEEN
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def redacted(text: str) -> str:
    """`text` without the passwords of URLs: of ``user:password@`` and of queries (``?token=``)."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))
