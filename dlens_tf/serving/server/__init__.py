"""A local server that speaks TensorFlow Serving's REST and gRPC, for development and tests.

    options.py        what the server is told, and which folders hold models
    models.py         `ModelStore`: loaded versions, hot reload
    inputs.py         what a request's tensors have to be
    batching.py       `Batcher`: joins concurrent requests
    json_tensors.py   tensors as TensorFlow Serving's JSON
    rest.py, rpc.py   the two protocols, and protos.py, the messages that both answer with
    bodies.py         bodies of requests, within the limits
    page.py           the page at /
    metrics.py        Prometheus metrics
    app.py            `Server`: all of it together

TensorFlow Serving is the production server.
"""
