"""Two GPUs in half precision, as on Kaggle; two virtual processors stand for them."""

import subprocess
import sys

SCRIPT = """
import sys, numpy as np, tensorflow as tf
from pathlib import Path
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
import keras
from skinlesion.model.augmentation import Mixing, make_augmentation
from skinlesion.model.checkpoints import Checkpoints
from skinlesion.config import make_config
from skinlesion.data.images import make_dataset
from skinlesion.model.train import Phase, Trainer, _fit_epoch, _seed_epoch, compile_trainer

rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (16, 32, 32, 3), np.uint8), rng.integers(0, 7, 16)
dataset = make_dataset(images, labels, batch_size=8)
config = make_config("default", weights="none", class_weights="none")
phase = Phase("from_scratch", 2, 0.01)
with strategy.scope():
    half = keras.DTypePolicy("mixed_float16")
    network = keras.Sequential([
        keras.Input((32, 32, 3)),
        keras.layers.Rescaling(1 / 255, dtype=half),
        keras.layers.Conv2D(4, 3, dtype=half),
        keras.layers.BatchNormalization(synchronized=True, dtype=half),
        keras.layers.GlobalAveragePooling2D(dtype=half),
        keras.layers.Dropout(0.4, dtype=half),
        keras.layers.Dense(7, activation="softmax", dtype="float32"),
    ])
    augmentation = make_augmentation("dermatoscopic", seed=0)
    trainer = Trainer(network, augmentation, Mixing("mixup", alpha=0.2, seed=0), half)
compile_trainer(trainer, config, phase, steps=2)
assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
before = [weights.copy() for weights in network.get_weights()]
checkpoints = Checkpoints(Path(sys.argv[1]))

def epoch(number):
    _seed_epoch(trainer, 1, number)
    return _fit_epoch(trainer, dataset, dataset, number, phase, np.inf, 0)

rows = [epoch(0)]
checkpoints.save(rows, network, trainer.optimizer)
assert any(np.abs(old - new).max() > 0 for old, new in zip(before, network.get_weights()))
second = epoch(1)
checkpoints.restore_model(network, 1)
checkpoints.restore_optimizer(trainer.optimizer, 1)
again = epoch(1)
assert np.isclose(second["loss"], again["loss"], rtol=1e-3), (second, again)
assert np.isclose(second["val_loss"], again["val_loss"], rtol=1e-3), (second, again)
"""


def test_an_epoch_with_all_that_is_random_can_be_done_again(tmp_path):
    command = [sys.executable, "-c", SCRIPT, tmp_path / "checkpoints"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
