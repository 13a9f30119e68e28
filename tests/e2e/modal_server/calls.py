"""What a client says about functions and calls: define, vary, call, wait, cancel."""

from __future__ import annotations

import asyncio

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2
from scheduler import Scheduler
from state import App, Call, Function, Input, World, content_id, new_id, not_found

LONGEST_POLL_S = 55.0
MOST_OUTSTANDING = 1000
EXPIRED_PAUSE_S = 0.2
"""A client that waits without a limit asks again at once."""


class Functions:
    """Definitions. `grants` says which of several acceptable GPUs is given: function name or "*" to GPU type."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.grants: dict[str, str] = {}

    async def function_precreate(
        self, request: api_pb2.FunctionPrecreateRequest
    ) -> api_pb2.FunctionPrecreateResponse:
        function = self._reserve(
            self.world.apps[request.app_id], request.function_name, request.existing_function_id
        )
        function.metadata.function_type = request.function_type
        function.metadata.function_schema.CopyFrom(request.function_schema)
        function.metadata.supported_input_formats[:] = request.supported_input_formats
        function.metadata.supported_output_formats[:] = request.supported_output_formats
        return api_pb2.FunctionPrecreateResponse(
            function_id=function.id, handle_metadata=function.metadata
        )

    async def function_create(
        self, request: api_pb2.FunctionCreateRequest
    ) -> api_pb2.FunctionCreateResponse:
        data = _as_data(request)
        function = self._reserve(
            self.world.apps[request.app_id], data.function_name, request.existing_function_id
        )
        function.data = data
        function.metadata.definition_id = content_id(
            "de", data.SerializeToString(deterministic=True)
        )
        function.granted = self._grant(function)
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=function.definition,
            handle_metadata=function.metadata,
            function_data=data,
        )

    async def function_bind_params(
        self, request: api_pb2.FunctionBindParamsRequest
    ) -> api_pb2.FunctionBindParamsResponse:
        """A variant of a function: an id of its own, the same for the same request, and containers of its own."""
        base = self.world.functions[request.function_id]
        variant_id = content_id("fu", request.SerializeToString(deterministic=True))
        if variant_id not in self.world.functions:
            metadata = api_pb2.FunctionHandleMetadata()
            metadata.CopyFrom(base.metadata)
            metadata.base_function_id = base.id
            variant = Function(variant_id, base.app, metadata, base=base)
            variant.data.CopyFrom(base.data)
            for ranked in variant.data.ranked_functions:
                _apply(request.function_options, ranked.function)
            variant.granted = base.granted
            self.world.functions[variant_id] = variant
        function = self.world.functions[variant_id]
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=variant_id, handle_metadata=function.metadata
        )

    def _reserve(self, app: App, name: str, existing_id: str) -> Function:
        known = self.world.functions.get(existing_id)
        if known is None:
            metadata = api_pb2.FunctionHandleMetadata(function_name=name, app_id=app.id)
            known = Function(new_id("fu"), app, metadata)
            self.world.functions[known.id] = known
        return known

    def _grant(self, function: Function) -> int:
        wanted = self.grants.get(function.name, self.grants.get("*"))
        for index, ranked in enumerate(function.data.ranked_functions):
            if ranked.function.resources.gpu_config.gpu_type == wanted:
                return index
        return 0


def _as_data(request: api_pb2.FunctionCreateRequest) -> api_pb2.FunctionData:
    """The newer form, which the client demands in return: what all ranks share, and a list with one rank."""
    if request.HasField("function_data"):
        return request.function_data
    data = api_pb2.FunctionData()
    shared = request.function.DESCRIPTOR.fields_by_name
    for field in data.DESCRIPTOR.fields:
        twin = shared.get(field.name)
        if twin is not None and not field.is_repeated:
            if not field.has_presence:
                setattr(data, field.name, getattr(request.function, field.name))
            elif request.function.HasField(field.name):
                getattr(data, field.name).CopyFrom(getattr(request.function, field.name))
    data.ranked_functions.add(rank=0, function=request.function)
    return data


def _apply(options: api_pb2.FunctionOptions, definition: api_pb2.Function) -> None:
    """Set what the options set; lists are extended, or replaced where the options say so."""
    if options.replace_secret_ids:
        definition.ClearField("secret_ids")
    if options.replace_volume_mounts:
        definition.ClearField("volume_mounts")
    definition.secret_ids.extend(options.secret_ids)
    definition.volume_mounts.extend(options.volume_mounts)
    for name in ("resources", "retry_policy", "scheduler_placement"):
        if options.HasField(name):
            getattr(definition, name).MergeFrom(getattr(options, name))
    for name in (
        "concurrency_limit timeout_secs task_idle_timeout_secs target_concurrent_inputs max_concurrent_inputs "
        "cloud_provider_str routing_region"
    ).split():
        if options.HasField(name):
            setattr(definition, name, getattr(options, name))


class Calls:
    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self.world, self.scheduler = world, scheduler

    async def function_map(
        self, request: api_pb2.FunctionMapRequest
    ) -> api_pb2.FunctionMapResponse:
        """A new call. The server owns retries (`sync_client_retries_enabled` stays false)."""
        function = self.world.functions[request.function_id]
        if function.app.stopped:
            raise not_found(f"running app of function {function.name!r}")
        kind, invocation = request.function_call_type, request.function_call_invocation_type
        call = Call(new_id("fc"), function, kind, invocation, request.parent_input_id)
        self.world.calls[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            pipelined_inputs=self._add(call, request.pipelined_inputs),
            retry_policy=function.definition.retry_policy,
            function_call_jwt=call.id,
            max_inputs_outstanding=MOST_OUTSTANDING,
        )

    async def function_put_inputs(
        self, request: api_pb2.FunctionPutInputsRequest
    ) -> api_pb2.FunctionPutInputsResponse:
        call = self.world.calls[request.function_call_id]
        return api_pb2.FunctionPutInputsResponse(inputs=self._add(call, request.inputs))

    async def function_finish_inputs(self, request: api_pb2.FunctionFinishInputsRequest) -> Empty:
        return Empty()

    def _add(self, call: Call, items: object) -> list[api_pb2.FunctionPutInputsResponseItem]:
        replies = []
        for item in items:
            made = Input(new_id("in"), call, item.idx, item.input)
            self.world.inputs[made.id] = made
            call.inputs.append(made)
            self.scheduler.submit(made)
            reply = api_pb2.FunctionPutInputsResponseItem(
                idx=item.idx, input_id=made.id, input_jwt=made.id
            )
            replies.append(reply)
        return replies

    async def function_get_outputs(
        self, request: api_pb2.FunctionGetOutputsRequest
    ) -> api_pb2.FunctionGetOutputsResponse:
        """Outputs after `last_entry_id`, or of the asked indices; waits for the first one at most `timeout`."""
        call = self.world.calls[request.function_call_id]
        seen = max(int(request.last_entry_id.partition("-")[0] or 0), call.cleared)

        def ready() -> list[Input]:
            found = call.finished[seen:]
            if request.HasField("start_idx"):
                return [item for item in found if request.start_idx <= item.idx <= request.end_idx]
            return found

        def over() -> (
            bool
        ):  # A map may still get inputs; a call of one input whose output was taken has expired.
            return call.kind == api_pb2.FUNCTION_CALL_TYPE_UNARY and not _unfinished(call)

        try:
            async with asyncio.timeout(min(request.timeout, LONGEST_POLL_S)), call.changed:
                await call.changed.wait_for(lambda: ready() or over())
        except TimeoutError:
            pass
        items = ready()
        if not items and over():
            await asyncio.sleep(EXPIRED_PAUSE_S)
        if request.clear_on_success and items:
            call.cleared = len(call.finished)
        return api_pb2.FunctionGetOutputsResponse(
            outputs=[item.output for item in items],
            idxs=[item.idx for item in items],
            last_entry_id=f"{len(call.finished)}-0",
            num_unfinished_inputs=_unfinished(call),
        )

    async def function_call_cancel(self, request: api_pb2.FunctionCallCancelRequest) -> Empty:
        call = self.world.calls[request.function_call_id]
        self.scheduler.cancel(call, terminate=request.terminate_containers)
        return Empty()

    async def function_call_from_id(
        self, request: api_pb2.FunctionCallFromIdRequest
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self.world.calls[request.function_call_id]
        function = call.function
        metadata = api_pb2.FunctionCallHandleMetadata(
            app_id=function.app.id, function_id=function.id
        )
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id, num_inputs=len(call.inputs), metadata=metadata
        )

    async def function_call_get_info(
        self, request: api_pb2.FunctionCallGetInfoRequest
    ) -> api_pb2.FunctionCallGetInfoResponse:
        call = self.world.calls[request.function_call_id]
        states = [item.state for item in call.inputs]
        groups = {
            "pending_inputs": {"PENDING", "RUNNING"},
            "succeeded_inputs": {"SUCCESS"},
            "failed_inputs": {"FAILURE", "INTERNAL_FAILURE"},
            "timeout_inputs": {"TIMEOUT"},
            "cancelled_inputs": {"TERMINATED"},
        }
        counts = {
            name: api_pb2.InputCategoryInfo(total=sum(state in group for state in states))
            for name, group in groups.items()
        }
        info = api_pb2.FunctionCallInfo(
            function_call_id=call.id, created_at=call.created_at, total_inputs=len(states), **counts
        )
        return api_pb2.FunctionCallGetInfoResponse(info=info)

    async def function_get_current_stats(
        self, request: api_pb2.FunctionGetCurrentStatsRequest
    ) -> api_pb2.FunctionStats:
        function = self.world.functions[request.function_id]
        return api_pb2.FunctionStats(
            backlog=len(function.pending),
            num_total_tasks=sum(len(unit.containers) for unit in function.units),
            num_running_inputs=sum(len(unit.running) for unit in function.units),
        )


def _unfinished(call: Call) -> int:
    return sum(item.output is None for item in call.inputs)
