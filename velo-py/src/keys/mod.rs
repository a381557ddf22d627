//! One function for any number of keys: a lane a worker, and a key table at its end.
//!
//! # The parts
//!
//! | what | where | is |
//! | --- | --- | --- |
//! | [`KeyedResults`](keyed::KeyedResults) | the caller | the iteration: takes events from the source, gives `(key, result)` |
//! | [`Index`](index::Index) | the caller | finds a key's entry by Python's own hash and equality; order of last use |
//! | [`Lane`](lane::Lane) | the caller | one way to a key table: a call inline, a stream in process mode, bytes to another machine |
//! | [`KeyTable`](table::KeyTable) | where the function runs | the generators, a queue of events each, and whose turn it is |
//! | [`KeyTask`](key_task::KeyTask) | there | a task with its context, as which keys are stepped |
//! | [`LaneRunner`](runner::LaneRunner) | a worker | moves frames between the rings of a lane and its table |
//! | [`LiveForm`](requests::LiveForm) | the caller | requests, and tasks in line for room, where events come from tasks (`live.rs`) |
//!
//! A key costs its generator, an [`Entry`](index::Entry) and a [`Slot`](slot::Slot). Opening one is
//! a frame; no task, no context and no timer belongs to a key that does not use one.
//!
//! # Frames
//!
//! A lane is a stream; its frames are those of `lane_frames.rs`. The first one tells the terms. Each of the
//! others but `HANDLED` begins with a key's id and generation.
//!
//! | to the worker | holds | back | holds |
//! | --- | --- | --- | --- |
//! | `OPEN` | the state that its function has saved in another worker, if it has | `RESULT` | a result |
//! | `EVENT` | an event | `ENDED` | nothing: the function has returned |
//! | `LAST` | nothing: no more events | `FAILED` | its exception |
//! | `CANCEL` | nothing | `HANDLED` | totals of events and bytes, and counts of some keys |
//! | `SAVE` | nothing: a snapshot is wanted | `SAVED` | a snapshot of its `state`, and how many events it covers |
//!
//! An event of a request is a `REQUEST`; its results are `ANSWER`s, and `ANSWERED` follows them once the
//! function asks for its next event. Where the function raises at it, `AT_FAULT` comes before
//! `FAILED`. Requests of one key are answered in order, so that a frame names the key and no request.
//!
//! Ids are dense, so that both sides find a key by indexing. An id is free again once its `ENDED` or
//! `FAILED` was read; the next key that gets it has the next generation. A ring keeps its order, so
//! that what the caller had sent to the old key before it read that arrives before the new key's
//! `OPEN`: the table drops it, since the generation is over.
//!
//! # Credit
//!
//! The worker always drains its ring, into the queues of its keys, so that a key that is slow holds up
//! no other. What may be in those queues is the caller's to bound: it sends a key no more than
//! `buffer` events that the key has not handled, and all keys together no more than `max_pending`, nor
//! more than `max_bytes` bytes. Events beyond a key's `buffer` wait in its entry, and count for
//! `max_pending` too; at `max_pending` the source is not asked. The table tells what it has handled in
//! batches: of a key when half its `buffer` is reached, of all keys as it comes to rest, or every
//! [`TELL_EVERY`](table::TELL_EVERY) events.
//!
//! Results are bounded by the ring back to the caller. A table that finds no room there keeps the
//! result, steps no key, and goes on draining. The caller takes results in every turn, before it
//! waits for anything, so that neither side ever waits for the other to read.
//!
//! # Steps
//!
//! An event of a key that waits for one is not queued: its generator is resumed in the middle of
//! reading frames, and what it yields is written. A key with more to do than its budget goes to the
//! end of the queue of runnable keys.
//!
//! Keys are stepped one after the other as the same task, in the same context. What they see of it is
//! their own all the same: if, after a step, somebody has kept a reference to the task, weak or not, or a context
//! variable has changed, or the generator has come to await a future, then that task and its context
//! become the key's ([`KeyTask::pin`](key_task::KeyTask)), and the next key is stepped as another one.
//! They are given up again when the key waits for an event and none of the three holds any more. So
//! `asyncio.timeout`, task groups, `current_task` and context variables mean what they mean in a
//! stream.
//!
//! # Ends
//!
//! A key ends because its function returns or raises, because its input was ended (idle, least
//! recently used, end of the source), or because it was cancelled. In each case the table says so
//! once, after the key's last result, and the caller forgets the id then and not before. With
//! `finished_keys="restart"` a function that returns leaves its key *dormant*: the next event runs it
//! anew. The table says so (`RETURNED`) with the number of events that the key has taken, and a caller
//! that has sent no more of them ends the key. There a key also opens dormant, unless it has a state: one
//! that moves, or whose worker has died, may be one whose function has returned.
//!
//! A lane ends with its worker. The worker's activity says which key ran, and at which event
//! (`activity.rs`), so that the error of each key names the key, and the one that ran is told from the
//! others (`deaths.rs`).
//!
//! # Recovery
//!
//! With `recover="replay"` each key has a journal at the caller (`journal.rs`): its encoded events since the
//! last snapshot of its `state`, and hashes of its results. A lane whose worker has died is dropped; each
//! of its keys opens in the lane with the least to do, where it is given the snapshot and the events
//! again. Results that were taken before are compared and dropped. A lane that is to leave a worker
//! which lives does the same once there is another lane (`moving.rs`); keys without a journal stay
//! there until they end. The stream of a lane itself has no journal.

mod activity;
mod answers;
mod deaths;
mod driving;
mod endings;
mod failed_at;
pub mod index;
mod input;
mod journal;
mod key_events;
mod key_of;
pub mod key_operation;
mod key_state;
pub mod key_task;
pub mod keyed;
mod lane;
#[cfg(process_mode)]
mod lane_view;
mod live;
pub mod live_results;
mod moving;
pub mod outlet;
mod positions;
mod progress;
mod receiving;
pub mod remote_lane;
mod requests;
mod restoring;
pub mod results;
mod rolling_back;
mod routing;
#[cfg(process_mode)]
pub mod runner;
mod runs;
mod saved_run;
mod saving;
mod sending;
mod showing;
mod slot;
mod snapshots;
mod steps;
mod stuck_tasks;
pub mod table;
mod tasks;
mod text_of;
mod trace;
pub mod tracker;
mod tracking;
mod turn;
mod waiting;
mod watched;
mod watching;
