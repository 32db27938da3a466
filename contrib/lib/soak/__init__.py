"""The soak: a site under load whose relfs is killed, stopped and replaced at random moments, for minutes.

    actors/      what runs beside relfs, each a process of its own: readers, writers, a switcher. They tell what they
                 saw as lines of JSON, and judge nothing
    evidence.py  these lines, read
    judge.py     which promises the evidence keeps, and which it breaks: pure
    site.py      the deploy path, and the processes that serve it
    chaos.py     when what is killed, and doing so
    vitals.py    memory, descriptors, threads, zombies and mounts
    run.py       one soak from beginning to end
    killall.py   everything killed at once, again and again
    report.py    the outcome, for people and for programs

`contrib/soak` starts it. The tests use the judge, the readers and the writers, too.
"""
