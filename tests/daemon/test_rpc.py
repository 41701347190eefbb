# SPDX-License-Identifier: Apache-2.0
"""Any bytes on the control socket are requests or RpcErrors, and what the client encodes is what the server decodes."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from netback.control import rpc
from netback.control.rpc import Code, RpcError
from netback.control.schema import METHODS, SetRequest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
NAMES = sorted({name for method in METHODS.values() for name in method.params.__struct_fields__})
PARAMS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON, max_size=6) | JSON
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": JSON,
        "method": st.sampled_from(sorted(METHODS)) | JSON,
        "params": PARAMS,
    },
)


def serve(line: bytes) -> list[Code]:
    """As the server does: the codes of what is wrong with each message of a line."""
    try:
        message = rpc.decode_line(line)
    except RpcError as error:
        return [Code(error.code)]
    codes = []
    for each in [message] if isinstance(message, msgspec.Raw) else message:
        try:
            call = rpc.decode_call(each)
            if call.method in METHODS:
                rpc.decode_params(call, METHODS[call.method].params)
            assert json.loads(rpc.encode_result({}, call.id or msgspec.Raw(b"null")))["result"] == {}
        except RpcError as error:
            codes.append(Code(error.code))
    for code in codes:
        assert json.loads(rpc.encode_error(code, "why"))["error"] == {"code": code, "message": "why"}
    return codes


@given(st.binary(max_size=200))
def test_any_bytes(line: bytes) -> None:
    serve(line)


@given(CALLS | st.lists(CALLS, max_size=4))
def test_any_json(message: object) -> None:
    serve(json.dumps(message).encode())


@given(CALLS, st.data())
def test_cut_and_changed_requests(message: object, data: st.DataObject) -> None:
    line = bytearray(json.dumps(message).encode())
    at = data.draw(st.integers(0, len(line) - 1))
    line[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    serve(bytes(line))


@given(st.text(max_size=256), st.none() | st.text(max_size=256), st.none() | st.booleans())
def test_what_a_client_asks_is_what_the_server_reads(
    device: str, rate: str | None, carrier: bool | None
) -> None:
    request = SetRequest(device=device, tx_rate=rate, carrier=carrier)
    line = rpc.encode_call("set", request, 1)
    assert line.count(b"\n") == 1
    message = rpc.decode_line(line)
    assert isinstance(message, msgspec.Raw)
    assert rpc.decode_params(rpc.decode_call(message), SetRequest) == request
