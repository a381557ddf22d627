//! Answers to `velo status`, `velo top` and `velo inspect`. Figures come from shared memory, where
//! reading them costs workers and clients nothing. What only a worker knows, the supervisor asks over
//! the worker's control socket. A worker that is blocked in a function does not answer: the answer then
//! has its stack instead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use velo_shm::LaneActivity;

use super::Reactor;
use crate::os;
use crate::pool::{ClientId, WorkerId};
use crate::supervisor::looks::Look;
use crate::wire::protocol::{
    LinkId, LinkLook, Question, RunningLook, StreamLook, ToClient, ToWorker, WorkerLook,
    WorkerStatus,
};

/// How long workers have for an answer.
const ANSWER_BOUND: Duration = Duration::from_millis(500);
/// How long workers that did not answer have to write their stacks.
const STACKS_BOUND: Duration = Duration::from_millis(300);
/// How many streams of one worker are shown, so that a look fits one message.
const MOST_STREAMS: usize = 4000;
/// More looks than this do not go on at a time.
const MOST_LOOKS: usize = 64;

impl Reactor {
    /// Asks all workers.
    pub(super) fn begin_look(&mut self, now: Instant, client: ClientId, question: Question) {
        if self.looks.open.len() >= MOST_LOOKS {
            let why = "too many are looking at it at once; try again".into();
            return self.tell_client(now, client, &ToClient::Unable { why }, Vec::new());
        }
        let ask = self.looks.next;
        self.looks.next += 1;
        let serving = self.pool.workers().filter(|(worker, _)| worker.pid != 0);
        let waiting: BTreeSet<_> = serving.map(|(worker, _)| worker.id).collect();
        for &worker in &waiting {
            let question = question.to_worker(worker);
            self.tell_worker(worker, &ToWorker::Ask { ask, question }, Vec::new());
        }
        let look = Look {
            client,
            question,
            until: now + ANSWER_BOUND,
            waiting,
            answers: BTreeMap::new(),
            stacks: false,
        };
        self.looks.open.insert(ask, look);
    }

    /// Ends the looks that are complete, or have waited long enough.
    pub(super) fn look(&mut self, now: Instant) {
        let (clients, workers) = (&self.clients, &self.workers);
        self.looks.open.retain(|_, look| {
            look.waiting.retain(|id| workers.contains_key(id));
            clients.contains_key(&look.client)
        });
        for look in self.looks.open.values_mut() {
            let stacks = matches!(look.question, Question::Inspect { .. });
            if look.until <= now && stacks && !look.stacks && !look.waiting.is_empty() {
                look.stacks = true;
                look.until = now + STACKS_BOUND;
                for id in &look.waiting {
                    workers[id].ask_for_stacks();
                }
            }
        }
        let over = |look: &Look| look.waiting.is_empty() || look.until <= now;
        let over: Vec<_> = self
            .looks
            .open
            .iter()
            .filter(|(_, look)| over(look))
            .map(|(ask, _)| *ask)
            .collect();
        for ask in over {
            if let Some(look) = self.looks.open.remove(&ask) {
                self.show(now, look);
            }
        }
    }

    fn show(&mut self, now: Instant, mut look: Look) {
        let seen: Vec<_> = self
            .pool
            .workers()
            .filter(|(worker, _)| worker.pid != 0)
            .map(|(worker, links)| WorkerLook {
                worker: worker.id,
                pid: worker.pid,
                answer: look.answers.remove(&worker.id),
                stack: match look.stacks && look.waiting.contains(&worker.id) {
                    true => self.take_stacks(worker.id),
                    false => String::new(),
                },
                links: self.look_at(links),
            })
            .collect();
        for worker in seen {
            self.tell_client(now, look.client, &ToClient::Looked(worker), Vec::new());
        }
        self.tell_client(now, look.client, &ToClient::Done, Vec::new());
    }

    /// The stacks that a worker has written now. They are not to be taken for its last words later.
    fn take_stacks(&self, worker: WorkerId) -> String {
        let Some(known) = self.workers.get(&worker) else {
            return String::new();
        };
        let stacks = known.stacks();
        known.clear_stacks();
        stacks.text
    }

    fn look_at(&self, links: &BTreeSet<LinkId>) -> Vec<LinkLook> {
        let mut room = MOST_STREAMS;
        let held = links
            .iter()
            .filter_map(|id| Some((*id, self.links.get(id)?)));
        held.map(|(link, held)| {
            let end = held.end();
            let open = end.open_slots(room);
            room -= open.len();
            LinkLook {
                link,
                client: self
                    .pool
                    .client_of(link)
                    .and_then(|id| self.clients.get(&id))
                    .map_or(0, |client| client.pid),
                running: end.running().map(|running| RunningLook {
                    slot: running.slot,
                    event: LaneActivity::event_of(running.event),
                }),
                omitted: match room {
                    0 => end
                        .residents()
                        .saturating_sub(u32::try_from(open.len()).unwrap_or(u32::MAX)),
                    _ => 0,
                },
                streams: open
                    .into_iter()
                    .map(|slot| StreamLook {
                        slot: slot.slot,
                        events: slot.events,
                        queued: slot.queued(),
                        results: slot.results,
                        results_queued: slot.results.saturating_sub(slot.taken),
                        bytes_in: slot.bytes_in,
                        bytes_out: slot.bytes_out,
                        latency_p50: slot.median,
                        latency_p99: slot.p99,
                        evicted: slot.evicted,
                    })
                    .collect(),
            }
        })
        .collect()
    }

    /// What links, and the system, know of a worker.
    pub(super) fn add_figures(&self, worker: &mut WorkerStatus, links: &BTreeSet<LinkId>) {
        let known = self.workers.get(&worker.id);
        (worker.events, worker.results) = known.map_or((0, 0), |known| known.counted());
        for end in links
            .iter()
            .filter_map(|id| self.links.get(id))
            .map(|held| held.end())
        {
            let counters = end.counters();
            worker.events = worker.events.wrapping_add(counters.to_worker.events);
            worker.results = worker.results.wrapping_add(counters.to_client.events);
            worker.queued = worker.queued.wrapping_add(end.queued());
            worker.residents = worker.residents.saturating_add(end.residents());
        }
        if let Some((cpu, memory)) = os::usage(worker.pid) {
            worker.cpu_ms = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
            worker.memory = memory;
        }
    }
}
