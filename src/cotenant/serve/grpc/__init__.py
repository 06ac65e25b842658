"""The gRPC front end: `inference.GRPCInferenceService`, health and reflection, on the event loop of HTTP.

Only this package imports grpc and protobuf, and only a server that speaks gRPC imports this package.
"""
