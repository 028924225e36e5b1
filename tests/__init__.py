"""Tests that drive the server from outside."""

import os

# gRPC's handlers around fork can wait for a thread of its own for ever, and servers are started by fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
