"""gRPC: the only room, besides generated code, that imports ``grpc`` at the top of a module."""
