"""Python's multiprocessing: a pool of workers, however they are started, with locks, queues and shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.servers import Served
from tests.support.victims import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

POOL = """
import multiprocessing
from multiprocessing import shared_memory

def begin(name, lock, counter):
    global memory, the_lock, the_counter
    memory, the_lock, the_counter = shared_memory.SharedMemory(name), lock, counter

def work(number):
    with the_lock:
        the_counter.value += 1
        seen = the_counter.value
        for at in range(1000):
            memory.buf[at] = seen % 256
    time.sleep(0.002)
    return number, seen

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    memory = shared_memory.SharedMemory(create=True, size=1000)
    counter = context.Value("L", 0)
    with context.Pool(3, begin, (memory.name, context.Lock(), counter), maxtasksperchild=60) as pool:
        done = 0
        while not os.path.exists("stop"):
            answers = pool.map(work, range(done, done + 10), chunksize=1)
            assert [number for number, _ in answers] == [*range(done, done + 10)], answers
            assert sorted(seen for _, seen in answers) == [*range(done + 1, done + 11)], answers
            assert counter.value == done + 10 and {*memory.buf[:1000]} == {(done + 10) % 256}
            done += 10
            acknowledge(done // 10)
        pool.close()  # else workers that have just begun are killed in the midst of that, and say so
        pool.join()
    memory.unlink()
"""


@pytest.mark.parametrize(("method", "cycles"), [("fork", 1), ("spawn", 2), ("forkserver", 1)])
def test_a_pool(tmp_path: Path, method: str, cycles: int) -> None:
    with Served(tmp_path, POOL, method) as pool:
        for number in range(cycles):
            pool.cycle(f"{number}.image")
        (tmp_path / "stop").touch()
        until("its end in good order", lambda: pool.status().get("State", "Z")[0] == "Z")
        assert not pool.stderr()
