"""Values of other people's formats: a function of the user's that turns one into a vector.

`topics.decode = "package:function"` names it. It is called as `function(value, headers)` for every record of
the vectors topic that has a value, in threads beside the index, mostly one at a time, and gives

- `(vector, attributes)`: numbers as a sequence or an array, or the bytes of little-endian float32; and a
  mapping, or None;
- `None`: the record deletes its key.

The key stays the record's, since compaction and the order of records are by key; only the value is the
function's, and of the headers those that are not `embedding-model`. What it raises, or gives beside that,
makes a dead letter of the record (code `hook_failed`). It must be a function of its arguments alone: a record
that is read again must come to the same.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from numpy.typing import ArrayLike

from ..errors import ConfigError
from .attributes import pack_attributes
from .documents import Refused
from .log import Headers

__all__ = ["DecodeHook", "Foreign", "call_hook", "load_hook"]

# Vector, as numbers or as the bytes of little-endian float32, and attributes.
Foreign = tuple[bytes | bytearray | memoryview | ArrayLike, Mapping[str, object] | None]
DecodeHook = Callable[[bytes, Headers], Foreign | None]


def load_hook(name: str | None) -> DecodeHook | None:
    """The function that `topics.decode` names; None for None. Raises ConfigError where there is none."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(import_module(module), function)
    except Exception as error:  # whatever somebody else's module raises while it is imported
        raise ConfigError(
            f"topics.decode: {name} cannot be imported: {type(error).__name__}: {error}; the module must be "
            "installed beside driftline, or its directory be in PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"topics.decode: {name} is a {type(found).__name__}, not a function")
    return cast(DecodeHook, found)


def call_hook(
    hook: DecodeHook, value: bytes, headers: Headers
) -> tuple[bytes | ArrayLike, bytes | None] | None:
    """The vector as a hook gives it, not checked, and its packed attributes; None for a delete.

    Raises Refused, whatever the hook does.
    """
    try:
        given: Any = hook(value, headers)  # whatever its annotations promise
    except Exception as error:
        said = " ".join(str(error).split())[:200].encode(errors="backslashreplace").decode()
        raise Refused("hook_failed", f"topics.decode raised {type(error).__name__}: {said}") from error
    if given is None:
        return None
    kind = type(cast(object, given))
    if not issubclass(kind, tuple) or len(given) != 2:
        raise Refused("hook_failed", f"topics.decode gave a {kind.__name__}; it must give two, or None")
    vector, attributes = cast("tuple[Any, object]", given)
    if vector is None:
        raise Refused("no_vector", "topics.decode gave no vector; a delete is None alone")
    is_buffer = type(vector) in (bytearray, memoryview)  # numpy would take their bytes for numbers
    floats = bytes(vector) if is_buffer else vector
    return floats, pack_attributes(attributes)
