"""Serves exported models on this machine, by TensorFlow Serving's REST and gRPC.

    python tools/serve.py --model_base=models/dlens
    python tools/serve.py --model_base=saved_models --rest_port=8501 --grpc_port=8500
    python tools/serve.py --models_config=serving/models.config --models_root=saved_models

For development and tests, and a page to try a model at http://localhost:8501/. The production
server is TensorFlow Serving, which takes the same folders and answers the same requests.
"""

from absl import flags

from dlens_tf import cli

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "model_base",
    [],
    "Folders of a model's versions, or folders of several models, separated by commas. The "
    "highest version of each is served, and a new one as soon as it is there.",
)
flags.DEFINE_string(
    "model_name", None, "Name to serve the one model by; default: its folder's name."
)
flags.DEFINE_string(
    "models_config",
    None,
    "Instead of --model_base: a models.config of TensorFlow Serving, with labels and policies.",
)
flags.DEFINE_string(
    "models_root", "/models", "Folder that /models of --models_config is on this machine."
)
flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen at; the default lets nobody in but this machine."
)
flags.DEFINE_integer(
    "rest_port", 8501, "Port of REST and the page; 0: any.", lower_bound=0, upper_bound=65535
)
flags.DEFINE_integer("grpc_port", 8500, "Port of gRPC; 0: any.", lower_bound=0, upper_bound=65535)
flags.DEFINE_integer(
    "max_batch_size", 32, "Most images that go through a network together.", lower_bound=1
)
flags.DEFINE_integer(
    "batch_timeout_micros",
    5000,
    "How long a batch waits for clients that were there a moment ago.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "max_enqueued",
    256,
    "Most requests that wait for a model; the next one is answered with 429.",
    lower_bound=1,
)
flags.DEFINE_integer("max_rows", 1024, "Most rows (images) of a request.", lower_bound=1)
flags.DEFINE_integer("max_request_bytes", 16 * 2**20, "Largest request.", lower_bound=1)
flags.DEFINE_integer(
    "max_json_values",
    2**18,
    "Most numbers, strings and so on of a JSON request; images are better sent as bytes.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_bytes_in_flight",
    256 * 2**20,
    "Most bytes of all requests in flight; the next one is answered with 429.",
    lower_bound=1,
)
flags.DEFINE_integer("max_connections", 512, "Most open REST connections.", lower_bound=1)
flags.DEFINE_float(
    "poll_seconds", 2.0, "Time between two looks for new versions; 0: none.", lower_bound=0.0
)
flags.DEFINE_float(
    "read_seconds",
    10.0,
    "Time that a client has to send a request's header, and its body or message.",
    lower_bound=0.1,
)
flags.DEFINE_float(
    "request_seconds", 30.0, "Time after which a request is given up.", lower_bound=0.1
)
flags.DEFINE_float(
    "grace_seconds", 15.0, "Time that requests in flight get at the end.", lower_bound=0.0
)
flags.DEFINE_integer(
    "workers",
    None,
    "Batches that are computed at the same time (default: one for each core).",
    lower_bound=1,
)
flags.DEFINE_integer(
    "intra_op_threads",
    1,
    "Threads that TensorFlow gives to one operation; 0: one for each core. More than one make "
    "small networks slower: their operations are short, and wake threads for nothing.",
    lower_bound=0,
)

NOTICE = "This is a server for development and tests; the production server is TensorFlow Serving."


def main(argv):
    del argv
    # All flags are checked before TensorFlow is imported.
    from dlens_tf.errors import UserError
    from dlens_tf.serving.server.options import ServerOptions, find_models, read_models_config

    bases = [base for base in FLAGS.model_base if base]
    if bool(bases) == bool(FLAGS.models_config):
        raise UserError("give either --model_base or --models_config; see --help")
    if FLAGS.models_config:
        if FLAGS.model_name:
            raise UserError("--model_name goes with --model_base; --models_config has names")
        models = read_models_config(FLAGS.models_config, FLAGS.models_root)
    else:
        models = find_models(bases, FLAGS.model_name)
    options = ServerOptions(
        models,
        **{
            name: FLAGS[name].value
            for name in (
                "host", "rest_port", "grpc_port", "max_batch_size", "batch_timeout_micros",
                "max_enqueued", "max_rows", "max_request_bytes", "max_json_values",
                "max_bytes_in_flight", "max_connections", "poll_seconds", "read_seconds",
                "request_seconds", "grace_seconds", "workers",
            )
            if FLAGS[name].value is not None
        },
    )  # fmt: skip
    serve(options)


def serve(options):
    try:
        import aiohttp  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        from dlens_tf.errors import UserError

        raise UserError(
            f"the server needs {error.name}; install it with pip install 'dlens_tf[serve]'"
        ) from error
    import asyncio

    import tensorflow as tf

    from dlens_tf.serving.server import app

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.intra_op_threads)

    def announce(server):
        for name in server.store.names():
            for status in reversed(server.store.statuses(name)):
                print(f"{name} version {status.version}: {status.state} {status.message}".rstrip())
        print(
            f"REST and page at http://{options.host}:{server.rest_port}, gRPC at "
            f"{options.host}:{server.grpc_port}. {NOTICE} Ctrl-C ends it.",
            flush=True,
        )

    asyncio.run(app.serve(options, announce))
    print("stopped", flush=True)


entry = cli.program(main)

if __name__ == "__main__":
    entry()
