# SPDX-License-Identifier: Apache-2.0
"""Makes docs/control.md from the types in `schema`: `python -m netback.control.document > docs/control.md`."""

import ast
import inspect
import re
from collections.abc import Iterator
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from netback.control import feed, rpc, schema, server
from netback.control.rpc import Code
from netback.observe import slots

_CODES = {
    Code.PARSE: "the line is no JSON; the id is null",
    Code.INVALID_REQUEST: "the JSON is no request; the id is null",
    Code.NO_METHOD: "there is no such method",
    Code.INVALID_PARAMS: "a parameter is missing, unknown, or has a wrong type or value",
    Code.INTERNAL: "a fault of netback, which is in its log",
    Code.FAILED: "it failed, and may succeed later",
    Code.REFUSED: "it cannot be: there is no such device, or a value is none",
    Code.BUSY: "too many clients or subscriptions",
}
_PLAIN = {int: "integer", str: "string", float: "number", bool: "boolean", type(None): "null"}
_PARTS = (
    schema.DeviceStatus,
    schema.PcapStatus,
    schema.Feature,
    schema.Rule,
    schema.Detached,
    schema.RuleFinding,
    slots.Ring,
    slots.Slot,
)
"""Types that are parts of others."""


def render_document() -> str:
    """The page."""
    return "\n".join([*_head(), *_methods(), *_topics(), *_parts(), *_errors(), *_limits(), ""])


def _head() -> Iterator[str]:
    yield f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
# The control socket

Made from the types in `src/netback/control/schema.py`: `python -m netback.control.document > docs/control.md`.
Version {schema.VERSION}.

A running backend listens at `{rpc.SOCKET}` in its runtime directory, `/run/netback` on real Xen. Messages are
JSON-RPC 2.0, each a line of UTF-8 that ends with a newline. Parameters are given by name. Requests of a connection are
answered in their order; batches and notifications are served as JSON-RPC says.

```
$ echo '{{"jsonrpc":"2.0","id":1,"method":"info"}}' | nc -U /run/netback/{rpc.SOCKET}
```

In Python, without an event loop, with typed results:

```python
from netback.control import Client

with Client() as netback:
    for device in netback.devices():
        print(device.device, device.backend, device.error)
    with netback.states() as states:
        for state in states:
            print(state.device, state.backend, state.frontend)
```

Whoever may connect may do what netback can do: `control_mode` and `control_group` of the configuration decide
([running.md](running.md)), by default only netback's own user.

Versions: `info` says the protocol's. The minor number grows when methods, topics, optional parameters or fields are
added: ignore fields that you do not know. The major number grows when anything else changes, and `Client` refuses
another one than its own.

## Methods
"""


def _methods() -> Iterator[str]:
    for name, method in schema.METHODS.items():
        yield f"### {name}\n\n{method.does}\n"
        if describe_fields(method.params):
            yield from _table("parameter", method.params)
        yield from _table("result", method.result)


def _topics() -> Iterator[str]:
    yield f"""## Topics

After `subscribe` the server sends notifications of the method `event`, the first at once, perhaps without events:

| parameter | type | meaning |
|---|---|---|
| `subscription` | integer | the number that `subscribe` gave |
| `topic` | string | the topic |
| `lost` | integer | events (of statistics: snapshots) lost since the last notification: the client did not read |
| `more` | boolean | whether a further notification belongs to the same moment |
| `events` | array | events of the topic's type, in the order in which they happened |

`ended`, with `subscription` and `reason`, says that the server ended a subscription. A client that does not read keeps
the oldest {feed.MAX_EVENTS} events and loses further ones; statistics are taken when the client has read the last ones.
"""
    for topic, event in schema.TOPICS.items():
        yield f"### {topic}\n\n{_doc(event)}\n"
        yield from _table("event", event)


def _parts() -> Iterator[str]:
    yield "## Parts of results\n"
    for part in _PARTS:
        yield f"### {part.__name__}\n\n{_doc(part)}\n"
        yield from _table("field", part)


def _errors() -> Iterator[str]:
    yield "## Errors\n\n| code | meaning |\n|---|---|"
    for code, meaning in _CODES.items():
        yield f"| {int(code)} | {meaning} |"


def _limits() -> Iterator[str]:
    yield f"""
The message is one printable line that names what was wrong.

## Limits

| what | at most | beyond it |
|---|---|---|
| a client's line | {rpc.MAX_LINE} bytes | an error, and the connection ends |
| a server's line | {rpc.MAX_ANSWER} bytes | |
| requests of a batch | {rpc.MAX_BATCH} | an error |
| answers to a batch | {rpc.MAX_BATCH_ANSWER} bytes | the remaining requests are refused |
| an id | {rpc.MAX_ID} bytes | an error |
| clients | {server.MAX_CLIENTS} | one is sent away (below) |
| subscriptions of a connection | {server.MAX_SUBSCRIPTIONS} | an error |
| captures of all clients | {schema.MAX_CAPTURES} | an error |
| time to read an answer | {server.WRITE_SECONDS:.0f} s | the connection ends |

Of too many clients the one is sent away that can best do without: of the user with the most clients, without a
subscription rather than with one, silent for longest. It reads why, with the id null. After each answer the server
serves others for as long as the answer took."""


def _table(what: str, struct: type[msgspec.Struct]) -> Iterator[str]:
    fields = describe_fields(struct)
    defaults = what == "parameter"
    yield f"| {what} | type | {'default | ' if defaults else ''}meaning |\n|---|---|{'---|' if defaults else ''}---|"
    for field, kind, default, meaning in fields:
        yield f"| `{field}` | {kind} | {f'{default} | ' if defaults else ''}{meaning} |"
    yield ""


def describe_fields(struct: type[msgspec.Struct]) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each field; a meaning is the text after it."""
    hints, meanings = get_type_hints(struct, include_extras=True), _meanings(struct)
    found = []
    for field in msgspec.structs.fields(struct):
        meaning = _words(meanings.get(field.name, ""))
        found.append((field.encode_name, _type(hints[field.name]), _default(field), meaning))
    return found


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    made = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return f"`{msgspec.json.encode(made).decode()}`"


def _meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The text after each field, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[field.target.id] = meaning
    return found


def _doc(struct: type) -> str:
    return _words(struct.__doc__ or "")


def _words(text: str) -> str:
    """A docstring on one line, in the words of JSON."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))


def _type(hint: Any) -> str:
    """A type in the words of JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1])
    if origin in (Union, UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (list, tuple):
        return f"array of {_type(arguments[0])}"
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    assert not isinstance(hint, GenericAlias)
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def _bounds(meta: msgspec.Meta) -> str:
    bounds = {"≥": meta.ge, "≤": meta.le, "<": meta.lt, "length ≤": meta.max_length}
    text = ", ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)
    return f" {text}"


if __name__ == "__main__":
    print(render_document(), end="")
