"""A process killed while it builds DeepSpeed's kernel leaves a lock that torch waits for."""

from trainer.kernels import remove_if_dead


def test_a_dead_process_lock_is_removed_and_a_live_one_is_not(tmp_path):
    lock = (tmp_path / "lock").resolve()
    with lock.open("w"):
        remove_if_dead(lock)
        assert lock.exists()
    remove_if_dead(lock)
    assert not lock.exists()
    remove_if_dead(lock)
