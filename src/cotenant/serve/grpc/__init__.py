"""The gRPC front end: `inference.GRPCInferenceService`, health and reflection, on the event loop of HTTP.

Only this package imports grpc and protobuf, and only a server that speaks gRPC imports this package.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
"""The server starts processes, but none that goes on without exec; before grpc is loaded."""
