"""Ranks ask a board for jobs: each is done by all, and by nobody once more."""

import asyncio

from launch.execution.job_board import JobBoard, Posted


def settled(*waiting):
    """What each of `waiting` has answered once nothing moves any more; "waits" where nothing."""

    async def run():
        tasks = [asyncio.ensure_future(one) for one in waiting]
        for _ in range(20):
            await asyncio.sleep(0)
        answers = [task.result() if task.done() else "waits" for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    return run()


def play(scene):
    """`scene` with a board for two ranks."""
    asyncio.run(scene(JobBoard(2)))


def test_all_ranks_do_every_job_in_order():
    async def scene(board):
        assert await settled(board.next(0, 0)) == ["waits"]
        for number in (1, 2):
            job = Posted(number, f"job {number}")
            asked = [board.next(rank, number - 1) for rank in (0, 1)]
            assert await settled(*asked, board.post(job), board.finished(number)) == [
                job,
                job,
                None,
                "waits",
            ]
            one = await settled(board.next(0, number), board.finished(number))
            assert one == ["waits", "waits"], "the other has not done it"
            both = await settled(board.next(1, number), board.finished(number))
            assert both == ["waits", None]

    play(scene)


def test_a_rank_that_starts_anew_does_what_not_all_have_done():
    async def scene(board):
        job = Posted(1, "job")
        await board.post(job)
        assert await settled(board.next(0, 0), board.next(1, 0)) == [job, job]
        assert await settled(board.next(0, 1)) == ["waits"]
        # rank 1 dies, and all start anew: what rank 0 had done does not count
        assert await settled(board.next(1, 0), board.next(0, 0)) == [job, job]
        assert await settled(board.next(1, 1), board.finished(1)) == ["waits", "waits"]
        assert await settled(board.next(0, 1), board.finished(1)) == ["waits", None]

    play(scene)


def test_a_job_that_all_have_done_is_never_done_again():
    """A training that was finished would begin from its start."""

    async def scene(board):
        await board.post(Posted(1, "job"))
        assert await settled(board.next(0, 1), board.next(1, 1)) == ["waits", "waits"]
        assert await settled(board.next(0, 0), board.next(1, 0)) == ["waits", "waits"]
        following = Posted(2, "the next one")
        await board.post(following)
        assert await settled(board.next(0, 0), board.next(1, 0)) == [following, following]

    play(scene)


def test_what_is_left_of_a_group_that_failed_between_two_jobs_gets_none():
    """Ray Train ends it in a moment; a job that it began would be said to have started again."""

    async def scene(board):
        await board.post(Posted(1, "job"))
        left = [asyncio.ensure_future(board.next(rank, 1)) for rank in (0, 1)]
        assert await settled(board.finished(1), board.lost(1)) == [None, None]
        following = Posted(2, "the next one")
        await board.post(following)
        assert await settled(board.next(0, 0), board.next(1, 0)) == [following, following]
        assert not any(task.done() for task in left)
        third = Posted(3, "one more")
        asked = [board.next(rank, 2) for rank in (0, 1)]
        assert await settled(*asked, board.post(third)) == [third, third, None]
        for task in left:
            task.cancel()

    play(scene)


def test_the_end_reaches_who_waits_and_who_asks_later_and_a_new_job_ends_it():
    async def scene(board):
        assert await settled(board.next(0, 0), board.end()) == [None, None]
        assert await settled(board.next(1, 0)) == [None]
        job = Posted(1, "job")
        await board.post(job)
        assert await settled(board.next(1, 0)) == [job]

    play(scene)
