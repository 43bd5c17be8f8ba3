"""Distribution strategies: one device, several in one machine, several machines."""

import json
import os

import tensorflow as tf

from dlens_tf.errors import UserError, choose

STRATEGIES = ("one_device", "mirrored", "multi_worker")


def make_strategy(name: str, logical_devices: int = 1) -> tf.distribute.Strategy:
    """Makes a strategy; to be called before anything else uses TensorFlow's devices.

    Args:
      name: "one_device"; "mirrored" for all GPUs, or all logical CPUs without GPU;
        "multi_worker" for the cluster described in the environment variable TF_CONFIG.
      logical_devices: cut the CPU (or the single GPU-less machine) into so many devices.

    Raises:
      UserError: if TF_CONFIG is missing or malformed, or devices were used already.
    """
    choose("strategy", name, STRATEGIES)
    if logical_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * logical_devices
            )
        except RuntimeError as error:
            raise UserError("logical devices must be set before TensorFlow is used") from error
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        return tf.distribute.MirroredStrategy([d.removeprefix("/device:") for d in devices])
    try:
        cluster = json.loads(os.environ["TF_CONFIG"])
        cluster["cluster"]["worker"], cluster["task"]["type"], cluster["task"]["index"]
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                implementation=tf.distribute.experimental.CommunicationImplementation.RING
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, for example "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from error


def gpu_names() -> list[str]:
    """Names of the GPUs that TensorFlow sees, one for each."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [device.get("device_name", "GPU") for device in details]


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder: the first worker, or the only one."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return resolver.task_type == chief and resolver.task_id == 0
