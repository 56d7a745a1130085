import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from skinlesion.data.cache import KEPT_DAYS, make_array, make_key
from skinlesion.data.images import load_images
from skinlesion.files import InputError
from skinlesion.model.datasets import make_batches


def make(folder, key="a" * 64, *, budget=0, made=None):
    def chunks():
        for start in (0, 2):
            if made is not None:
                made.append(start)
            yield np.arange(start, start + 2, dtype=np.uint8)[:, None] * np.ones(3, np.uint8)

    return make_array((4, 3), np.uint8, chunks(), key=key, folder=folder, budget=budget)


def test_what_fits_is_kept_in_memory(tmp_path):
    array = make(tmp_path, budget=12)
    assert array[:, 0].tolist() == [0, 1, 2, 3]
    assert not isinstance(array, np.memmap)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_a_file_that_is_used_again(tmp_path):
    made = []
    for _ in range(2):
        array = make(tmp_path, made=made)
        assert isinstance(array, np.memmap)
        assert array[:, 2].tolist() == [0, 1, 2, 3]
    assert made == [0, 2]


@pytest.mark.parametrize(
    "damage", ["cut off", "of something else", "empty", "one bit of the array", "one bit before it"]
)
def test_a_file_that_is_damaged_or_of_other_data_is_made_again(tmp_path, damage, capsys):
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-70])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage.startswith("one bit"):
        content = bytearray(path.read_bytes())
        end = len(content) - 72  # a checksum of 8 digits and a key of 64
        content[end - 6 if damage == "one bit of the array" else 20] ^= 1
        path.write_bytes(content)
    else:
        make(tmp_path, key="b" * 64)
        (tmp_path / f"{'b' * 64}.npy").replace(path)
    made = []
    capsys.readouterr()
    assert make(tmp_path, made=made)[:, 0].tolist() == [0, 1, 2, 3]
    assert made == [0, 2]
    assert capsys.readouterr().out.startswith(f"cache: {path} is damaged and is made again\n")


def test_an_interruption_leaves_nothing(tmp_path):
    def chunks():
        yield np.zeros((1, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_array((4, 3), np.uint8, chunks(), key="a" * 64, folder=tmp_path, budget=0)
    assert not list(tmp_path.iterdir())


TWO = """
import sys
import numpy as np
from pathlib import Path
from skinlesion.data.cache import make_array
make_array((4,), int, [np.arange(4)], key="a" * 64, folder=Path(sys.argv[1]), budget=0)
"""


def test_two_processes_may_make_the_same_file(tmp_path):
    def while_another_makes_it():
        yield np.arange(2)
        subprocess.run([sys.executable, "-c", TWO, tmp_path], check=True)
        yield np.arange(2, 4)

    key = "a" * 64
    array = make_array((4,), int, while_another_makes_it(), key=key, folder=tmp_path, budget=0)
    assert array.tolist() == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.npy"]


def test_files_that_nobody_used_for_long_are_deleted(tmp_path):
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    long_ago = time.time() - (KEPT_DAYS + 1) * 24 * 3600
    os.utime(path, (long_ago, long_ago))
    make(tmp_path, key="b" * 64)
    assert [p.name[0] for p in tmp_path.iterdir()] == ["b"]


def test_keys_differ_where_parts_differ():
    keys = {make_key(*parts) for parts in (["ab"], ["a", "b"], ["b", "a"], [b"ab", ""])}
    assert len(keys) == 4
    assert make_key(np.arange(3)) != make_key(np.arange(4))


class TestImages:
    @pytest.fixture
    def paths(self, flat_data):
        return sorted(flat_data.rglob("*.jpg"))

    def load(self, paths, cache, size=(8, 12)):
        return load_images(paths, image_size=size, cache=cache, budget=0)

    def test_the_file_holds_the_pixels(self, paths, tmp_path):
        cached = self.load(paths, tmp_path / "cache")
        assert (cached == load_images(paths, image_size=(8, 12))).all()

    def test_it_is_made_again_when_an_image_or_the_size_changes(self, paths, tmp_path):
        cache = tmp_path / "cache"
        self.load(paths, cache)
        Image.new("RGB", (20, 15), "red").save(paths[3], quality=40)
        again = self.load(paths, cache)
        assert again[3, 0, 0, 0] > 200
        self.load(paths, cache, size=(8, 8))
        assert len(list(cache.iterdir())) == 3

    def test_a_damaged_image_leaves_no_file(self, paths, tmp_path):
        paths[3].write_bytes(b"no")
        with pytest.raises(InputError, match=f"{paths[3].name}: cannot be read as an image"):
            self.load(paths, tmp_path / "cache")
        assert not list((tmp_path / "cache").iterdir())

    def test_batches_come_from_the_file(self, paths, tmp_path):
        cached = self.load(paths, tmp_path / "cache")
        batches = make_batches(cached, np.zeros(98, np.int32), np.ones(7), 40, shuffle=False)
        seen = np.concatenate([x for x, _, _ in batches.as_numpy_iterator()])
        assert (seen == cached).all()


def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path):
    """The limit of the size of files stands for the end of the disk."""
    code = f"""
import numpy as np
from pathlib import Path
from skinlesion.data.cache import make_array
chunks = (np.zeros((1, 1000), np.uint8) for _ in range(1000))
make_array((1000, 1000), np.uint8, chunks, key="a" * 64, folder=Path({str(tmp_path)!r}), budget=0)
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        check=False,
    )
    assert "InputError" in process.stderr
    assert "cannot be written (File too large); make room or choose another" in process.stderr
    assert not list(tmp_path.iterdir())


MEMORY = """
import sys
import numpy as np
from pathlib import Path
from skinlesion.data.images import load_images
from skinlesion.model.datasets import make_batches

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

paths, found = sorted(Path(sys.argv[1]).rglob("*.jpg")), []
for count in (500, 10_000):
    most = 0
    many = (paths * (count // len(paths) + 1))[:count]
    images = load_images(many, image_size=(64, 64), cache=Path(sys.argv[2]), budget=0)
    labels = np.arange(count, dtype=np.int32) % 7
    batches = make_batches(images, labels, np.ones(7), 32, shuffle=True)
    for epoch in range(2):
        for batch in batches:
            most = max(most, anonymous())
    found.append(most)
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(flat_data, tmp_path):
    """Most anonymous memory, in kB, of a process that goes through few and many images."""
    command = [sys.executable, "-c", MEMORY, flat_data, tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split()[-2:])
    assert many < 1.1 * few
