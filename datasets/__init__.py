"""TFDS builders. Importing a builder's package registers it with `tfds.load`."""
