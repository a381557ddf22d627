//! Workers that make no progress: the supervisor notices them, has them write their stacks, and kills them.
//!
//! Looks are taken only while streams are open whose limits ask for it. A look compares what links
//! show with what they showed at the look before: a worker has made no progress if nothing changed,
//! by the supervisor's own clock.

use velo_shm::{Progress, Setting};

use super::watched::{Seen, Watch, Writing};
use super::*;

/// How many looks are taken within the shortest limit.
const LOOKS_PER_LIMIT: u32 = 4;
/// Looks are not more frequent than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// Looks are not rarer than this, however long the limits are.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a worker that is to be killed may write its stacks.
pub(super) const WRITING_BOUND: Duration = Duration::from_secs(2);
/// The stacks are complete when nothing was added for this long: the thread that writes them may have to
/// wait for its turn between two lines.
pub(super) const WRITING_PAUSE: Duration = Duration::from_millis(100);

impl Pool {
    /// A client asks the supervisor to watch the worker of one of its links. False: it has no such link.
    pub(crate) fn watch(
        &mut self,
        now: Instant,
        client: ClientId,
        link: LinkId,
        asked: Watch,
    ) -> bool {
        let Some(known) = self.links.get_mut(&link).filter(|l| l.client == client) else {
            return false;
        };
        known.watch = Some(known.watch.unwrap_or_default().strictest(asked));
        self.next_watch = Some(now);
        true
    }

    /// Takes the looks that are due.
    pub(super) fn look_at_workers(&mut self, now: Instant, gauges: &impl Gauges) {
        self.look_at_writing(now, gauges);
        if self.next_watch.is_none_or(|at| at > now) {
            return;
        }
        let mut pause: Option<Duration> = None;
        for (&id, link) in &mut self.links {
            if link.watch.is_some() && gauges.stop_watching(id) {
                link.watch = None;
            }
            let stall = link.watch.and_then(|watch| watch.stall);
            let between = stall.map(|limit| limit / LOOKS_PER_LIMIT);
            let memory = link.watch.and_then(|watch| watch.memory);
            let memory = memory.map(|_| LONGEST_PAUSE);
            pause = [pause, between, memory].into_iter().flatten().min();
        }
        self.next_watch = pause.map(|pause| now + pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
        let mut still = Vec::new();
        for (&id, worker) in &mut self.workers {
            if let Some(killed) = worker.look(now, &self.links, gauges) {
                still.push((id, killed));
            }
        }
        for (worker, killed) in still {
            self.kill_for(now, worker, killed);
        }
        self.look_at_memory(now, gauges);
    }

    /// Has a worker write down its stacks, and then killed.
    fn kill_for(&mut self, now: Instant, worker: WorkerId, why: Killed) {
        self.requeue(worker);
        let Some(known) = self.workers.get_mut(&worker) else {
            return;
        };
        known.killed = Some(why);
        known.writing = Some(Writing {
            written: 0,
            next_look: now + WRITING_PAUSE,
        });
        // The next step is to be killed.
        known.stage = Stage::Stopping {
            step: Step::Terminate,
            until: Some(now + WRITING_BOUND),
            terminate: Duration::ZERO,
        };
        self.actions.push(Action::AskForStacks { worker });
    }

    /// Kills those that have written their stacks, before their time is up. One that has moved on
    /// meanwhile is let go: what it runs now is not what is to be killed.
    fn look_at_writing(&mut self, now: Instant, gauges: &impl Gauges) {
        let mut let_go = Vec::new();
        for (&id, worker) in &mut self.workers {
            if worker.writing.is_some() && !self.closing && worker.has_moved(gauges) {
                (worker.writing, worker.killed, worker.seen) = (None, None, None);
                worker.stage = Stage::Running;
                let_go.push(id);
            }
            let Some(writing) = &mut worker.writing else {
                continue;
            };
            if writing.next_look > now {
                continue;
            }
            let written = gauges.written(id);
            let over = written > 0 && written == writing.written;
            writing.written = written;
            writing.next_look = now + WRITING_PAUSE;
            if let Stage::Stopping {
                step: Step::Terminate,
                until,
                ..
            } = &mut worker.stage
            {
                if over {
                    *until = Some(now);
                }
            } else {
                worker.writing = None;
            }
        }
        // Its keys that became free meanwhile have waited for its end.
        for worker in let_go {
            for key in self.keys.of_worker(worker) {
                self.grant_next(key);
            }
        }
    }

    /// When to take the next look.
    pub(super) fn watch_deadline(&self) -> Option<Instant> {
        let writing = self.workers.values().filter_map(|worker| {
            let alive = worker.ended.is_none();
            worker
                .writing
                .as_ref()
                .filter(|_| alive)
                .map(|writing| writing.next_look)
        });
        writing.chain(self.next_watch).min()
    }
}

impl Worker {
    fn progress(&self, gauges: &impl Gauges) -> Vec<(LinkId, Progress)> {
        let links = self.links.iter();
        links.map(|&link| (link, gauges.progress(link))).collect()
    }

    /// Whether it has done anything since the last look.
    fn has_moved(&self, gauges: &impl Gauges) -> bool {
        let seen = self.seen.as_ref();
        seen.is_some_and(|seen| seen.progress != self.progress(gauges))
    }

    /// Compares what its links show with what they showed at the last look. Gives what it is to be
    /// killed for, if anything.
    fn look(
        &mut self,
        now: Instant,
        links: &BTreeMap<LinkId, Link>,
        gauges: &impl Gauges,
    ) -> Option<Killed> {
        let watches = || self.links.iter().filter_map(|id| links.get(id)?.watch);
        if self.writing.is_some() {
            return None; // `look_at_writing` compares with the look before that
        }
        if self.stage != Stage::Running || self.ended.is_some() || watches().next().is_none() {
            self.seen = None;
            return None;
        }
        let progress = self.progress(gauges);
        let waits = self.links.iter().any(|&link| gauges.input_waits(link));
        let running = self.links.iter().find_map(|&link| gauges.running(link));
        let shortest = watches().filter_map(|watch| watch.stall).min();
        let seen = match &mut self.seen {
            Some(seen) if seen.progress == progress => seen,
            seen => seen.insert(Seen {
                progress,
                since: now,
                waiting: None,
            }),
        };
        if waits {
            seen.waiting.get_or_insert(now);
        } else {
            seen.waiting = None;
        }
        if let Some(allowance) = running.map(|running| running.allowance) {
            let allowance = allowance?; // it may go on for as long as it likes
            let stalled = now.saturating_duration_since(seen.since) >= allowance.time;
            return stalled.then_some(Killed::Step {
                ms: allowance.time.as_millis() as u64,
                event: allowance.setting == Setting::Event,
            });
        }
        let waited = now.saturating_duration_since(seen.waiting?);
        (waited >= shortest?).then_some(Killed::Still {
            ms: waited.as_millis() as u64,
        })
    }
}
