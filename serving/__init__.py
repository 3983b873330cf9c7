"""The built-in model server: TensorFlow Serving's REST and gRPC API over the versions that `tfrec export` publishes."""
