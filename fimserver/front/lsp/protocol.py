"""JSON-RPC and the life cycle of a language server, on top of pygls' dispatcher.

It adds what pygls 2.1.1 lacks: every request is answered exactly once, also one that cannot be parsed;
nothing is served before ``initialize`` or after ``shutdown``; errors contain no text or path; handlers see
messages in the order of arrival.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams, JsonRpcMethodNotFound
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol, lsp_method

from fimserver.front.lsp.rpc_codes import Code, Life
from fimserver.front.lsp.tolerance import filled_in, structured

log = logging.getLogger("fimserver.front")
Send = Callable[[bytes], None]
Id = int | str


# pygls handles these for its own workspace; ours is the document mirror of the session.
OURS = (
    lsp.TEXT_DOCUMENT_DID_OPEN,
    lsp.TEXT_DOCUMENT_DID_CHANGE,
    lsp.TEXT_DOCUMENT_DID_CLOSE,
    lsp.NOTEBOOK_DOCUMENT_DID_OPEN,
    lsp.NOTEBOOK_DOCUMENT_DID_CHANGE,
    lsp.NOTEBOOK_DOCUMENT_DID_CLOSE,
    lsp.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS,
)


class Protocol(LanguageServerProtocol):
    """pygls' dispatcher with stricter rules. ``send`` takes message bodies, ``leave`` an exit code."""

    def __init__(self, server: LanguageServer, converter: Any) -> None:
        super().__init__(server, converter)
        for method in OURS:
            del self.fm.builtin_features[method]
        self.life = Life.NEW
        self.send: Send = lambda _: None
        self.leave: Callable[[int], None] = lambda _: None
        self.on_bad_params: Callable[[str, Any], None] = lambda _method, _params: None
        self.on_lost: Callable[[], None] = lambda: None
        self._asked: dict[Id, tuple[Any, Any]] = {}  # requests to the editor: future and type of the answer

    def receive(self, body: bytes) -> None:
        """Handle one message from the editor. Never raises, so that the next one is handled too."""
        try:
            self._take(body)
        except Exception as error:  # noqa: BLE001 - a traceback may quote text
            log.error("a message failed: %s", type(error).__name__)  # noqa: TRY400

    def _take(self, body: bytes) -> None:
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            self.on_lost()
            self._refuse(None, Code.PARSE)
            return
        if not isinstance(message, dict):
            self.on_lost()
            self._refuse(None, Code.REQUEST)
        elif isinstance(method := message.get("method"), str):
            self._called(method, message)
        elif "id" in message and ("result" in message or "error" in message):
            self._answered(message)
        else:
            self._refuse(_id_of(message), Code.REQUEST)

    def _called(self, method: str, message: dict[str, Any]) -> None:
        is_request = "id" in message
        if is_request and _id_of(message) is None:
            self._refuse(None, Code.REQUEST)
        elif (refusal := self._refusal(method)) is not None:
            if is_request:
                self._refuse(_id_of(message), refusal)
        else:
            self._dispatch(method, message, is_request=is_request)

    def _refusal(self, method: str) -> Code | None:
        """Return why a method cannot be served in the current state, or ``None``."""
        if method == lsp.EXIT:
            return None
        if self.life is Life.NEW:
            return None if method == lsp.INITIALIZE else Code.NOT_INITIALIZED
        return Code.REQUEST if self.life is Life.SHUT_DOWN or method == lsp.INITIALIZE else None

    def _dispatch(self, method: str, message: dict[str, Any], *, is_request: bool) -> None:
        if method == lsp.EXIT:
            self.leave(0 if self.life is Life.SHUT_DOWN else 1)
            return
        try:
            call = self._structured(method, message, is_request=is_request)
        except Exception:  # noqa: BLE001 - cattrs raises many kinds
            self.on_bad_params(method, message.get("params"))
            if is_request:
                self._refuse(message["id"], Code.PARAMS)
            return
        if is_request and not hasattr(call, "id"):  # a notification's method with an id
            self.on_bad_params(method, message.get("params"))
            self._refuse(message["id"], Code.REQUEST)
            return
        if method == lsp.SHUTDOWN:
            self.life = Life.SHUT_DOWN
        self.handle_message(call)
        if method == lsp.INITIALIZE and hasattr(
            self, "server_capabilities"
        ):  # else it failed, and may be tried again
            self.life = Life.RUNNING

    def _structured(self, method: str, message: dict[str, Any], *, is_request: bool) -> Any:
        """Convert a message to its lsprotocol type; our own methods keep their parameters as plain JSON."""
        kind = self.get_message_type(method)
        message = {**message, "jsonrpc": "2.0"}
        if "params" in message:
            message["params"] = filled_in(method, message["params"])
        if kind is None:
            from pygls.protocol.json_rpc import JsonRPCNotification, JsonRPCRequestMessage  # noqa: PLC0415

            params = message.get("params")
            if is_request:
                return JsonRPCRequestMessage(id=message["id"], method=method, jsonrpc="2.0", params=params)
            return JsonRPCNotification(method=method, jsonrpc="2.0", params=params)
        return structured(self._converter, message, kind)

    def _answered(self, message: dict[str, Any]) -> None:
        """Handle the editor's answer to a request of ours. Ignores an unknown id."""
        msg_id = _id_of(message)
        if msg_id is None or msg_id not in self._asked:
            return
        future, kind = self._asked.pop(msg_id)
        try:
            if "error" in message:
                future.set_exception(JsonRpcException("the editor refused"))
            else:
                future.set_result(
                    self._converter.structure(message, kind).result if kind else message["result"]
                )
        except Exception as error:  # noqa: BLE001 - the editor's answer has the wrong type
            future.set_exception(JsonRpcException(type(error).__name__))

    def send_request(
        self, method: str, params: Any = None, callback: Any = None, msg_id: Id | None = None
    ) -> Any:
        """Send a request to the editor, with an id that cannot clash with the editor's own."""
        msg_id = msg_id or uuid.uuid4().hex
        future = super().send_request(method, params, callback, msg_id)
        self._asked[msg_id] = self._request_futures.pop(msg_id), self._result_types.pop(msg_id)
        future.add_done_callback(lambda _: self._asked.pop(msg_id, None))
        return future

    def handle_message(self, message: Any) -> None:
        self._shutdown = False  # ``self.life`` decides instead
        super().handle_message(message)

    def _execute_handler(
        self,
        msg_id: Id,
        handler: Callable[..., Any],
        callback: Callable[[Any], None],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Run a handler at once up to its first await, so that it sees the documents as of its message."""
        if inspect.isgeneratorfunction(handler):
            super()._execute_handler(msg_id, handler, callback, args, kwargs)
            if (
                running := self._request_futures.get(msg_id)
            ) is not None:  # a notification's: pygls never takes it away
                running.add_done_callback(lambda _: self._request_futures.pop(msg_id, None))
            return
        future: Any = Future()
        try:
            result = handler(*(args or ()), **(kwargs or {}))
            if inspect.iscoroutine(result):
                future = asyncio.ensure_future(result)
                self._request_futures[msg_id] = future
                future.add_done_callback(lambda _: self._request_futures.pop(msg_id, None))
            else:
                future.set_result(result)
        except BaseException as error:  # noqa: BLE001 - every request must be answered
            future.set_exception(error)
        future.add_done_callback(callback)

    def _send_handler_result(self, future: Any, *, msg_id: Id) -> None:
        self._request_futures.pop(msg_id, None)
        if future.cancelled():
            self._refuse(msg_id, Code.CANCELLED)
        elif (error := future.exception()) is None:
            self._send_result(msg_id, future.result())
        elif isinstance(error, JsonRpcException) and error.code == Code.PARAMS.value[0]:
            self._refuse(msg_id, Code.PARAMS)
        else:
            log.error("a handler failed: %s", type(error).__name__)
            self._refuse(msg_id, Code.INTERNAL, type(error).__name__)

    def _send_result(self, msg_id: Id, result: Any) -> None:
        try:
            self._send_response(msg_id, result=result)
        except Exception as error:  # noqa: BLE001 - a result that cannot be serialised is an error answer
            log.error("an answer cannot be written: %s", type(error).__name__)  # noqa: TRY400
            self._refuse(msg_id, Code.INTERNAL, type(error).__name__)

    def _check_handler_result(self, future: Any) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            log.error("a notification failed: %s", type(error).__name__)

    def _handle_request(self, msg_id: Id, method_name: str, params: Any) -> None:
        try:
            self._get_handler(method_name)
        except JsonRpcMethodNotFound:
            self._refuse(msg_id, Code.METHOD)
            return
        super()._handle_request(msg_id, method_name, params)

    def _handle_cancel_notification(self, msg_id: Id) -> None:
        """Cancel a request; its own callback removes and answers it."""
        if isinstance(msg_id, int | str) and (future := self._request_futures.get(msg_id)) is not None:
            future.cancel()

    def _handle_notification(self, method_name: str, params: Any) -> None:
        """Handle a notification as pygls does, but without leaking a future for each one."""
        if method_name == lsp.CANCEL_REQUEST:
            self._handle_cancel_notification(params.id)
            return
        try:
            handler = self._get_handler(method_name)
        except JsonRpcMethodNotFound:
            return
        self._execute_handler(f"notification {id(params)}", handler, self._check_handler_result, (params,))

    def _refuse(self, msg_id: Id | None, code: Code, detail: str = "") -> None:
        number, words = code.value
        error = {"code": number, "message": f"{words}: {detail}" if detail else words}
        self._send_body({"jsonrpc": "2.0", "id": msg_id, "error": error})

    def _send_data(self, data: Any) -> None:
        self._send_body(self._converter.unstructure(data, unstructure_as=type(data)))

    def _send_body(self, message: Any) -> None:
        """Send a message as strict JSON: no NaN, and lone surrogates (echoed from the client) escaped."""
        write = partial(
            json.dumps, message, default=self._serialize_message, allow_nan=False, separators=(",", ":")
        )
        try:
            self.send(write(ensure_ascii=False).encode())
        except UnicodeEncodeError:
            self.send(write().encode())

    @lsp_method(lsp.SHUTDOWN)
    def lsp_shutdown(self, *_: Any) -> Any:
        """Shut down; answers every pending request as cancelled."""
        for future in list(self._request_futures.values()):
            future.cancel()
        if (handler := self.fm.features.get(lsp.SHUTDOWN)) is not None:
            handler(None)

    @lsp_method(lsp.WORKSPACE_EXECUTE_COMMAND)
    def lsp_workspace__execute_command(self, params: lsp.ExecuteCommandParams) -> Any:
        """Run a command with the arguments as sent, even if they are too few or too many."""
        if (command := self.fm.commands.get(params.command)) is None:
            raise JsonRpcInvalidParams
        return command(*(params.arguments or ()))


def _id_of(message: dict[str, Any]) -> Id | None:
    found = message.get("id")
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None
