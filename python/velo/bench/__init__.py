"""What velo costs and gains, beside its floors and its peers, measured in one run.

Every figure of velo stands beside one of something else that was measured in turn with it, several
times; what counts is the ratio. A *subject* is one thing to measure: a function that runs in a
Python process of its own, so that nothing that one leaves behind touches the next. A *scenario*
names its subjects and makes rows of their figures. Peers are optional: what is not installed is
named and left out.
"""
