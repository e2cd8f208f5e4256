"""Objects of System V IPC without a holder: semaphore sets and message queues, which outlive whoever uses them.

Whose they are is a guess: they belong to the processes that used them last.  After a restart those that are still there
are left as they are; others are made again.
"""
