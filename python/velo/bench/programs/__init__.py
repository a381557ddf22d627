"""The job of `alternatives` as a user of each of them writes it: programs that end when stopped.

They count the payments of a user, and add them up, from a topic of Kafka to another one. None of
them imports velo's benchmarks. Their lines are counted.
"""
