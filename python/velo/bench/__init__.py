"""Benchmarks of velo, compared with its floors and its peers in one run.

Most figures of velo are compared with the figure of a floor or a peer, measured in turn with it
over several rounds; compare the ratios. A *subject* is one function that measures one thing. It
runs in a Python process of its own, so that it cannot affect the next subject. A *scenario* names
its subjects and makes rows of their figures. Peers are optional: a peer that is not installed is
reported and left out.
"""
