"""Infers the parameters of lenses from their images, with an exported model.

    python tools/predict.py --model=axion_model_i --images='data/*.fits' --output=predictions.csv
    python tools/predict.py --model=runs/first/export --images='data/*.fits' \\
        --output=predictions.csv
    python tools/predict.py --server=http://localhost:8501 --model=dlens \\
        --images='data/*.fits' --output=predictions.csv

Reads .npy, HDF5 and FITS; writes one row per image as .csv, .ecsv or .h5.
"""

import atexit

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model",
    None,
    "Name of a ready-to-use model, or an exported one: a bundle, or the folder of its versions. "
    "With --server, the name that the server knows it by.",
)
flags.DEFINE_string(
    "server",
    None,
    "Model server to ask, TensorFlow Serving or tools/serve.py: http://host:8501 (REST) or "
    "grpc://host:8500. Default: the model is loaded here.",
)
flags.DEFINE_list("images", [], "Image files and quoted patterns, separated by commas.")
flags.DEFINE_string("output", None, "Catalogue to write: .csv, .ecsv or .h5.")
flags.DEFINE_float("pixel_scale", None, "Arcsec per pixel of images whose file does not say.")
flags.DEFINE_string(
    "hdf5_dataset", None, "Data set to read in HDF5 files; default: the usual names."
)
flags.DEFINE_string("fits_hdu", None, "Name or number of the FITS HDU; default: the first image.")
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images that go through the network together; default: 64, or 32 in a server's request.",
    lower_bound=1,
)
flags.DEFINE_float(
    "timeout",
    None,
    "With --server: seconds for each request, with all retries; default: 10.",
    lower_bound=0.1,
)
flags.DEFINE_integer(
    "model_version", None, "With --server: version to ask; default: the newest.", lower_bound=0
)
flags.DEFINE_string("label", None, "With --server: label of the version, for example stable.")

ROWS_SHOWN = 10


def main(argv):
    del argv
    patterns = [pattern for pattern in FLAGS.images if pattern]  # "a.npy," has an empty one
    cli.require(model=FLAGS.model, images=patterns, output=FLAGS.output)
    # All input is checked before TensorFlow is imported; but gRPC needs it to ask for the manifest.
    from dlens_tf.hub import find_model
    from dlens_tf.inference.bundle import Manifest
    from dlens_tf.io.catalogues import Column, check_catalogue_path, write_catalogue
    from dlens_tf.io.files import check_not_input, expand_patterns
    from dlens_tf.io.images import read_images

    asked = {"timeout": FLAGS.timeout, "version": FLAGS.model_version, "label": FLAGS.label}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and not FLAGS.server:
        raise UserError("--timeout, --model_version and --label go with --server")
    output = check_catalogue_path(FLAGS.output)
    paths = expand_patterns(patterns)
    check_not_input(output, paths)
    if FLAGS.server:
        from dlens_tf.serving import Client

        predictor = Client(FLAGS.server, FLAGS.model, **asked)
        atexit.register(predictor.close)
        manifest = predictor.manifest
    else:
        bundle = find_model(FLAGS.model)
        manifest = Manifest.read(bundle)
    lenses = read_images(
        paths,
        manifest.image,
        pixel_scale=FLAGS.pixel_scale,
        hdf5_dataset=FLAGS.hdf5_dataset,
        fits_hdu=FLAGS.fits_hdu,
        progress=len(paths) > ROWS_SHOWN,
    )
    if not FLAGS.server:
        from dlens_tf.inference.predictor import Predictor

        predictor = Predictor.load(bundle)
    names = [f"{file}[{index}]" for file, index in zip(lenses.files, lenses.indices, strict=True)]
    options = {"batch_size": FLAGS.batch_size} if FLAGS.batch_size else {}
    posterior = predictor.predict(
        lenses.images, progress=len(lenses) > ROWS_SHOWN, names=names, **options
    )
    manifest = predictor.manifest  # a server may have loaded a new version meanwhile
    write_catalogue(
        output,
        [Column("file", lenses.files), Column("index", lenses.indices), *posterior.columns()],
        meta={
            "model": str(predictor if FLAGS.server else bundle),
            "recipe": manifest.recipe,
            "git_commit": manifest.git_commit,
            "dlens_tf_version": manifest.dlens_tf_version,
        },
    )
    for row in range(min(len(lenses), ROWS_SHOWN)):
        print(f"{names[row]}  {posterior.describe(row)}")
    if len(lenses) > ROWS_SHOWN:
        print(f"… and {len(lenses) - ROWS_SHOWN} more")
    print(f"wrote {output}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
