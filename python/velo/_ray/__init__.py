"""Streams on the nodes of a Ray cluster: an actor a node, with process mode inside.

| file | is |
| --- | --- |
| `node.py` | what runs on a node: an actor, which relays frames to the lanes of its workers |
| `relays.py` | the lanes of one caller there |
| `carrier.py` | the caller's side: carries the frames of lanes to one node and back |
| `cluster.py` | the nodes that there are, and an actor on each |
| `failures.py` | the errors that have to do with one node |
| `buckets.py` | which node has the sessions of a key |
| `deployment.py`, `member.py` | `velo run` as a service on several nodes |
| `lanes.py` | the lanes of one `keyed` or `keys()`, spread over nodes |

A lane is that of process mode, with the same frames (`velo-py/src/keys/mod.rs`). They travel as
bytes in the arguments and the replies of calls, which Ray passes from process to process, and never
through its object store.
"""
