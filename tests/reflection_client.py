#!/usr/bin/env python3
"""A client that knows nothing of sparsekv but its address: everything comes by server reflection.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install grpcio grpcio-reflection
    /tmp/venv/bin/python tests/reflection_client.py 127.0.0.1:50051

Streams a completion, cancels a call, and lets one run into its deadline; exit 1 when one of them does not
go as it should.
"""
import sys
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main(address):
    channel = grpc.insecure_channel(address)
    database = ProtoReflectionDescriptorDatabase(channel)
    print("services:", ", ".join(sorted(database.get_services())))
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("sparsekv.v1.Generation").FindMethodByName("Generate")
    request_class = message_factory.GetMessageClass(method.input_type)
    response_class = message_factory.GetMessageClass(method.output_type)
    generate = channel.unary_stream(
        "/sparsekv.v1.Generation/Generate",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )

    messages, tokens = 0, 0
    for response in generate(request_class(text="In the beginning", max_new_tokens=40)):
        messages += 1
        tokens += len(response.token_ids)
        print(response.text, end="", flush=True)
    reason = response.DESCRIPTOR.fields_by_name["finish_reason"].enum_type
    print(f"\nstreamed: {tokens} tokens in {messages} messages, "
          f"{reason.values_by_number[response.finish_reason].name}")
    good = tokens > 0 and messages > 1

    long_request = request_class(text="And", max_new_tokens=8000, ignore_eos=True)
    call = generate(long_request)
    for count, _ in enumerate(call):
        if count == 3:
            call.cancel()
            break
    time.sleep(0.1)
    print("cancelled:", call.code())
    good &= call.code() == grpc.StatusCode.CANCELLED

    try:
        for _ in generate(long_request, timeout=0.5):
            pass
        good = False
    except grpc.RpcError as error:
        print("deadlined:", error.code())
        good &= error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
