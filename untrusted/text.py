"""Text of a stranger on its way to people: nothing that steers a terminal, no passwords."""

import re
import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories: control, format (bidirectional overrides), surrogates, private use, ends."""
_USER = re.compile(r"(?<=://)[^/?#\s'\"@]*:[^/?#\s'\"]*@|(?<=://)[^/?#\s'\"@:]+@")
_PASSWORD = re.compile(r"://[^/?#\s]*:[^/?#\s]*@|https?://[^/?#\s]+@", re.I)
# so many characters at most: a hostile text of `token` a thousand times is searched in linear time
_SAYS = (
    r"[\w.-]{0,64}(?:token|secret|signature|password|passwd|credential|apikey|api_key)[\w.-]{0,64}"
)
_QUERY = re.compile(rf"([?&;](?:{_SAYS}|sig|key)=)[^&#\s'\"]+", re.I)
_ASSIGNED = re.compile(rf"((?<![\w.-]){_SAYS}=)[^&#\s'\"]+", re.I)
_HEADER = re.compile(r"(authorization['\"]?: *['\"]?\w+ +)[^\s'\"]+", re.I)


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not seen spelled out (``\\x1b``), but those in `keep`."""
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _UNSEEN
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def redacted(text: str) -> str:
    """`text` without passwords: of URLs (``user:password@``, ``?token=``), of headers."""
    for secret in (_QUERY, _ASSIGNED, _HEADER):
        text = secret.sub(r"\1***", text)
    return _USER.sub("***@", text)


def holds_secret(location: str) -> bool:
    """Whether a URL tells a password. Of other schemes a user alone is none: ``ssh://me@host``."""
    return bool(_QUERY.search(location) or _PASSWORD.search(location))
