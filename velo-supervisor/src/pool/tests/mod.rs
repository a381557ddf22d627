//! The pool without a process: every decision, with a clock that the test turns.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use super::deaths::HEALTHY_AFTER;
use velo_shm::{Progress, Running};

use super::*;

mod keys;
mod memory;
mod sharing;
mod watch;

const IDLE: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Fake {
    residents: HashMap<LinkId, u32>,
    opened: HashMap<LinkId, u64>,
    retired: RefCell<HashSet<LinkId>>,
    running: HashMap<LinkId, Running>,
    progress: HashMap<LinkId, Progress>,
    waiting: HashSet<LinkId>,
    /// No open stream asks for looks any more.
    unlimited: HashSet<LinkId>,
    written: HashMap<WorkerId, u64>,
    closed: RefCell<HashSet<LinkId>>,
    memory: HashMap<i32, u64>,
}

impl Gauges for Fake {
    fn residents(&self, link: LinkId) -> u32 {
        self.residents.get(&link).copied().unwrap_or(0)
    }

    fn opened(&self, link: LinkId) -> u64 {
        self.opened.get(&link).copied().unwrap_or(0)
    }

    fn retire(&self, link: LinkId) -> bool {
        let free = self.residents(link) == 0;
        free && self.retired.borrow_mut().insert(link)
    }

    fn running(&self, link: LinkId) -> Option<Running> {
        self.running.get(&link).copied()
    }

    fn progress(&self, link: LinkId) -> Progress {
        self.progress.get(&link).copied().unwrap_or_default()
    }

    fn input_waits(&self, link: LinkId) -> bool {
        self.waiting.contains(&link)
    }

    fn stop_watching(&self, link: LinkId) -> bool {
        self.unlimited.contains(&link)
    }

    fn written(&self, worker: WorkerId) -> u64 {
        self.written.get(&worker).copied().unwrap_or(0)
    }

    fn close(&self, link: LinkId) {
        self.closed.borrow_mut().insert(link);
    }

    fn memory(&self, pid: i32) -> Option<u64> {
        self.memory.get(&pid).copied()
    }
}

struct Rig {
    pool: Pool,
    fake: Fake,
    now: Instant,
    next_request: u64,
    /// Spawn workers and attach links as soon as the pool asks for it.
    willing: bool,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            max: None,
            cores: 2,
            min: 0,
            idle: IDLE,
            drain: 2000 * MS,
            terminate: 1000 * MS,
            client_workers: None,
        };
        change(&mut settings);
        let mut pool = Pool::new(settings);
        pool.open();
        Self {
            pool,
            fake: Fake::default(),
            now: Instant::now(),
            next_request: 1,
            willing: true,
        }
    }

    /// Settles until nothing is to be done; gives what was done.
    fn reconcile(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        loop {
            let actions = self.pool.reconcile(self.now, &self.fake);
            if actions.is_empty() {
                return all;
            }
            for action in &actions {
                match *action {
                    Action::Spawn { worker } if self.willing => {
                        assert!(self.pool.spawned(self.now, worker, 100 + worker as i32));
                        self.pool.started(self.now, worker);
                    }
                    Action::Attach { worker, link, .. } if self.willing => {
                        self.pool.attached(self.now, worker, link);
                    }
                    _ => {}
                }
            }
            all.extend(actions);
        }
    }

    fn acquire(&mut self, client: ClientId, limit: u32) -> Vec<Action> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.pool.acquire(self.now, client, request, limit);
        self.reconcile()
    }

    fn link(&mut self, client: ClientId, limit: u32) -> (LinkId, WorkerId) {
        let done = self.acquire(client, limit);
        done.iter()
            .find_map(|action| match action {
                Action::Deliver { link, worker, .. } => Some((*link, worker.id)),
                _ => None,
            })
            .unwrap_or_else(|| panic!("no link in {done:?}"))
    }

    /// Turns the clock to each deadline in turn until this much time has passed.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut all = Vec::new();
        for _ in 0..10_000 {
            match self.pool.next_deadline() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => {
                    self.now = end;
                    all.extend(self.reconcile());
                    return all;
                }
            }
            all.extend(self.reconcile());
        }
        panic!("the pool does not come to rest: {:?}", self.pool);
    }
}

fn refusals(actions: &[Action]) -> Vec<&Refusal> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Refuse { reason, .. } => Some(reason),
            _ => None,
        })
        .collect()
}

fn spawns(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Spawn { .. }))
        .count()
}

#[test]
fn a_client_gets_one_link_per_worker_up_to_its_limit() {
    let mut rig = Rig::new(|_| {});
    assert_eq!(rig.link(1, 2).1, 1);
    assert_eq!(rig.link(1, 2).1, 2);
    assert_eq!(refusals(&rig.acquire(1, 2)), [&Refusal::AtLimit]);
    assert_eq!(rig.link(1, 3).1, 3, "the limit is the request's own");
}

#[test]
fn an_unsaid_limit_is_the_number_of_cores_and_the_ceiling_is_kept() {
    let mut rig = Rig::new(|_| {});
    rig.link(1, 0);
    rig.link(1, 0);
    assert_eq!(refusals(&rig.acquire(1, 0)), [&Refusal::AtLimit]);
    let mut rig = Rig::new(|settings| settings.max = Some(1));
    rig.link(1, 0);
    assert_eq!(refusals(&rig.acquire(1, 8)), [&Refusal::AtLimit]);
}

#[test]
fn another_client_shares_the_least_loaded_worker() {
    let mut rig = Rig::new(|_| {});
    let (busy, _) = rig.link(1, 2);
    rig.fake.residents.insert(busy, 5);
    let (_, second) = rig.link(1, 2);
    let done = rig.acquire(2, 2);
    assert_eq!(spawns(&done), 0);
    assert!(
        done.iter()
            .any(|a| matches!(a, Action::Attach { worker, .. } if *worker == second))
    );
}

#[test]
fn requests_at_once_go_to_different_workers_before_any_has_started() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    assert_eq!(spawns(&rig.acquire(1, 2)), 1);
    assert_eq!(spawns(&rig.acquire(1, 2)), 1);
    assert_eq!(refusals(&rig.acquire(1, 2)), [&Refusal::AtLimit]);
}

#[test]
fn a_death_is_told_at_once_with_its_status_or_soon_without() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    rig.pass(HEALTHY_AFTER);
    rig.pool.ended(rig.now, worker, true);
    assert_eq!(rig.reconcile(), [], "the status may still come");
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    let info = WorkerInfo {
        id: worker,
        pid: 101,
    };
    let died = |exit| Action::Died {
        client: 1,
        link,
        worker: info,
        exit,
        why: None,
    };
    assert_eq!(
        rig.reconcile(),
        [died(Exit::Signal(9)), Action::Forget { worker }]
    );

    let (link, worker) = rig.link(1, 2);
    rig.pool.ended(rig.now, worker, true);
    let done = rig.pass(STATUS_BOUND);
    let info = WorkerInfo {
        id: worker,
        pid: 102,
    };
    let unknown = Action::Died {
        client: 1,
        link,
        worker: info,
        exit: Exit::Unknown,
        why: None,
    };
    assert!(done.contains(&unknown), "{done:?}");
}

#[test]
fn a_dying_worker_takes_no_new_link() {
    let mut rig = Rig::new(|_| {});
    let (_, worker) = rig.link(1, 1);
    rig.pool.ended(rig.now, worker, true);
    assert_ne!(rig.link(2, 1).1, worker);
}

#[test]
fn idle_links_then_idle_workers_go_and_then_no_timer_runs() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    let done = rig.pass(IDLE * 5 / 4);
    assert_eq!(
        done,
        [
            Action::Detach { worker, link },
            Action::Retired { client: 1, link }
        ]
    );
    assert_eq!(
        rig.pass(IDLE * 3 / 4),
        [Action::Stop {
            worker,
            step: Step::Drain
        }]
    );
    rig.pool.exited(rig.now, worker, Exit::Code(0));
    rig.reconcile();
    assert_eq!((rig.pool.len(), rig.pool.next_deadline()), (0, None));
}

#[test]
fn a_link_in_use_stays() {
    let mut rig = Rig::new(|_| {});
    let (busy, _) = rig.link(1, 2);
    let (lively, _) = rig.link(1, 2);
    rig.fake.residents.insert(busy, 1);
    for opened in 0..20 {
        rig.fake.opened.insert(lively, opened);
        let done = rig.pass(IDLE / 2);
        assert_eq!(done, [], "after {opened} looks");
    }
    assert_eq!(
        rig.pass(IDLE * 3)
            .iter()
            .filter(|a| matches!(a, Action::Retired { .. }))
            .count(),
        1
    );
}

#[test]
fn a_worker_is_idle_only_after_its_links_are_let_go() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    rig.pool.release(rig.now, 2, link, false);
    assert_eq!(rig.reconcile(), [], "it is not this client's link");
    rig.pool.release(rig.now, 1, link, false);
    assert_eq!(rig.reconcile(), [Action::Detach { worker, link }]);
    rig.pass(IDLE / 2);
    rig.pool.detached(rig.now, worker);
    assert_eq!(
        rig.pass(IDLE * 9 / 10),
        [],
        "it was busy with the link until now"
    );
    assert_eq!(
        rig.pass(IDLE),
        [
            Action::Stop {
                worker,
                step: Step::Drain
            },
            Action::Stop {
                worker,
                step: Step::Terminate
            },
            Action::Stop {
                worker,
                step: Step::Kill
            },
        ]
    );
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    rig.willing = false;
    rig.acquire(1, 2);
    rig.pool.client_gone(rig.now, 1);
    let done = rig.reconcile();
    assert!(done.contains(&Action::Detach { worker, link }), "{done:?}");
    assert!(rig.pool.links.is_empty() && rig.pool.waiting.is_empty());
}

#[test]
fn the_minimum_is_made_at_once_kept_and_replaced() {
    let mut rig = Rig::new(|settings| settings.min = 2);
    assert_eq!(spawns(&rig.reconcile()), 2);
    assert_eq!(rig.pass(IDLE * 20), []);
    assert_eq!(rig.pool.next_deadline(), None);
    rig.pool.exited(rig.now, 1, Exit::Signal(11));
    assert_eq!(spawns(&rig.reconcile()), 1);
}

#[test]
fn a_minimum_that_cannot_live_does_not_spin() {
    let mut rig = Rig::new(|settings| settings.min = 1);
    let mut made = spawns(&rig.reconcile());
    for _ in 0..40 {
        let worker = rig.pool.next_worker - 1;
        rig.pool.exited(rig.now, worker, Exit::Code(1));
        made += spawns(&rig.pass(Duration::from_secs(1)));
    }
    assert!((5..30).contains(&made), "{made} attempts in 40 s");
}

#[test]
fn a_crash_loop_ends_in_a_refusal_that_says_why() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    let mut done = rig.acquire(1, 2);
    let start = rig.now;
    let mut deaths = 0;
    while refusals(&done).is_empty() {
        if let Some(Action::Spawn { worker }) = done
            .iter()
            .rev()
            .find(|action| matches!(action, Action::Spawn { .. }))
        {
            assert!(rig.pool.spawned(rig.now, *worker, 7));
            rig.pool.exited(rig.now, *worker, Exit::Code(3));
            deaths += 1;
        }
        done = rig.pass(50 * MS);
        assert!(deaths < 20);
    }
    assert_eq!(deaths, restarts::PATIENCE);
    assert!(
        rig.now - start < Duration::from_secs(1),
        "told without a long wait"
    );
    let Refusal::Failed(why) = refusals(&done)[0] else {
        panic!("{done:?}")
    };
    assert!(why.contains("exit code `3`"), "{why}");
    rig.willing = true;
    rig.pool.acquire(rig.now, 1, RequestId(99), 2);
    let done = rig.pass(Duration::from_secs(1));
    assert!(
        done.iter().any(|a| matches!(a, Action::Deliver { .. })),
        "a new request tries anew"
    );
}

#[test]
fn a_request_survives_the_death_of_the_worker_it_was_given_to() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    rig.acquire(1, 1);
    rig.pool.spawned(rig.now, 1, 7);
    rig.pool.exited(rig.now, 1, Exit::Signal(9));
    rig.willing = true;
    let done = rig.reconcile();
    assert!(
        done.iter()
            .any(|a| matches!(a, Action::Deliver { worker, .. } if worker.id == 2))
    );
}

#[test]
fn a_lost_zygote_brings_its_unborn_back_in_order() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    rig.acquire(1, 2);
    rig.acquire(1, 2);
    rig.pool.zygote_lost();
    rig.willing = true;
    let requests: Vec<_> = rig
        .reconcile()
        .into_iter()
        .filter_map(|action| match action {
            Action::Deliver { request, .. } => Some(request.0),
            _ => None,
        })
        .collect();
    assert_eq!(requests, [1, 2]);
    rig.willing = false;
    rig.acquire(1, 3);
    rig.pool.give_up("no python");
    assert_eq!(
        refusals(&rig.reconcile()),
        [&Refusal::Failed("no python".into())]
    );
}

#[test]
fn a_worker_that_never_serves_is_killed_and_counts_as_failed() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    rig.acquire(1, 1);
    rig.pool.spawned(rig.now, 1, 7);
    let done = rig.pass(START_BOUND);
    assert!(
        done.contains(&Action::Stop {
            worker: 1,
            step: Step::Kill
        }),
        "{done:?}"
    );
    assert_eq!(spawns(&done), 1, "its request goes to another one");
    rig.pool.exited(rig.now, 1, Exit::Signal(9));
    rig.reconcile();
    assert!(rig.pool.restarts.reasons().contains("did not serve"));
}

/// Gives a request no worker: `fail` is called with each that is forked for it, and the time passes. Returns
/// the number of workers and the refusal.
fn refused_after(mut fail: impl FnMut(&mut Rig, WorkerId), time: Duration) -> (u32, String) {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    let mut done = rig.acquire(1, 1);
    let mut forks = 0;
    loop {
        if let [Refusal::Failed(why), ..] = refusals(&done)[..] {
            return (forks, why.clone());
        }
        for action in &done {
            if let Action::Spawn { worker } = action {
                forks += 1;
                assert!(forks < 20, "it goes on for ever");
                assert!(rig.pool.spawned(rig.now, *worker, 100 + *worker as i32));
                fail(&mut rig, *worker);
            }
        }
        done = rig.pass(time);
    }
}

#[test]
fn workers_that_never_serve_end_in_a_refusal() {
    let (forks, why) = refused_after(|_, _| {}, START_BOUND);
    assert_eq!(forks, restarts::PATIENCE);
    assert!(why.contains("did not serve within 30 s"), "{why}");
}

#[test]
fn so_do_workers_that_end_after_a_long_start() {
    let slow = START_BOUND * 9 / 10;
    let ends_unready = |rig: &mut Rig, worker| {
        rig.pass(slow);
        rig.pool.exited(rig.now, worker, Exit::Code(3));
    };
    let (forks, why) = refused_after(ends_unready, MS);
    assert_eq!(forks, restarts::PATIENCE);
    assert!(why.contains("exit code `3`"), "{why}");
    let ends_at_once = |rig: &mut Rig, worker| {
        rig.pass(slow);
        rig.pool.started(rig.now, worker);
        rig.pool.exited(rig.now, worker, Exit::Code(3));
    };
    assert_eq!(refused_after(ends_at_once, MS), (forks, why));
}

#[test]
fn a_failed_link_is_refused_and_the_worker_stays() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    let done = rig.acquire(1, 1);
    let Some(Action::Attach { worker, link, .. }) = done.last() else {
        panic!("{done:?}")
    };
    rig.pool
        .attach_failed(rig.now, worker + 1, *link, "not its link".into());
    assert_eq!(rig.reconcile(), []);
    rig.pool
        .attach_failed(rig.now, *worker, *link, "no memory".into());
    assert_eq!(
        refusals(&rig.reconcile()),
        [&Refusal::Failed("no memory".into())]
    );
    assert_eq!(rig.pool.len(), 1);
}

#[test]
fn a_shutdown_asks_then_terminates_then_kills_within_its_bound() {
    let mut rig = Rig::new(|_| {});
    let (_, worker) = rig.link(1, 2);
    rig.willing = false;
    rig.acquire(1, 2);
    let start = rig.now;
    rig.pool.shut_down(rig.now, 1000 * MS);
    let done = rig.reconcile();
    assert!(
        done.contains(&Action::Stop {
            worker,
            step: Step::Drain
        }),
        "{done:?}"
    );
    assert!(
        matches!(refusals(&done)[..], [Refusal::Failed(_)]),
        "the unborn one's request"
    );
    assert!(matches!(
        refusals(&rig.acquire(1, 2))[..],
        [Refusal::Failed(_)]
    ));
    let done = rig.pass(850 * MS);
    let steps: Vec<_> = done
        .iter()
        .filter(|a| matches!(a, Action::Stop { .. }))
        .collect();
    assert_eq!(steps.len(), 2, "{done:?}");
    assert!(rig.now - start < 1000 * MS);
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    assert!(matches!(rig.reconcile()[0], Action::Died { .. }));
    assert_eq!(rig.pool.len(), 0);
}

#[test]
fn no_bound_means_killing_at_once() {
    let mut rig = Rig::new(|_| {});
    let (_, worker) = rig.link(1, 2);
    rig.pool.shut_down(rig.now, Duration::ZERO);
    assert_eq!(
        rig.reconcile(),
        [Action::Stop {
            worker,
            step: Step::Kill
        }]
    );
}

#[test]
fn a_worker_that_leaves_its_socket_is_made_to_end() {
    let mut rig = Rig::new(|_| {});
    let (_, worker) = rig.link(1, 2);
    rig.pool.hung_up(rig.now, worker);
    let steps = [Step::Terminate, Step::Kill].map(|step| Action::Stop { worker, step });
    assert_eq!(rig.pass(Duration::from_secs(5)), steps);
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    assert!(
        rig.pool
            .restarts
            .reasons()
            .contains("left its control socket")
    );
}

#[test]
fn a_worker_that_hangs_up_to_die_is_known_by_its_exit_status() {
    let mut rig = Rig::new(|_| {});
    let (_, worker) = rig.link(1, 2);
    rig.pool.hung_up(rig.now, worker);
    assert_eq!(rig.reconcile(), []);
    rig.pool.exited(rig.now, worker, Exit::Code(7));
    assert!(matches!(
        rig.reconcile()[0],
        Action::Died {
            exit: Exit::Code(7),
            ..
        }
    ));
    assert_eq!(
        rig.pool.restarts.reasons(),
        "",
        "one that has served a client is no failed start"
    );
}

#[test]
fn a_worker_quicker_than_its_zygote_is_delivered_with_its_pid() {
    let mut rig = Rig::new(|_| {});
    rig.willing = false;
    let done = rig.acquire(1, 1);
    let Some(Action::Attach { worker, link, .. }) = done.last().cloned() else {
        panic!("{done:?}")
    };
    rig.pool.started(rig.now, worker);
    rig.pool.attached(rig.now, worker, link);
    assert_eq!(rig.reconcile(), [], "its pid is not known");
    rig.pool.spawned(rig.now, worker, 77);
    let worker = WorkerInfo {
        id: worker,
        pid: 77,
    };
    let request = RequestId(1);
    assert_eq!(
        rig.reconcile(),
        [Action::Deliver {
            client: 1,
            request,
            link,
            worker
        }]
    );
}

#[test]
fn waiting_requests_are_bounded() {
    let mut rig = Rig::new(|_| {});
    for request in 0..=MOST_WAITING as u64 {
        rig.pool.acquire(rig.now, 1, RequestId(request), 1);
    }
    let Action::Refuse { request, .. } = rig.reconcile()[0] else {
        panic!("not refused")
    };
    assert_eq!(request.0, MOST_WAITING as u64);
}

#[test]
fn links_that_say_absurd_things_are_added_up_all_the_same() {
    let mut rig = Rig::new(|settings| settings.max = Some(1));
    for client in 1..4 {
        let (link, _) = rig.link(client, 1);
        rig.fake.residents.insert(link, u32::MAX - 1);
    }
    assert_eq!(rig.link(4, 1).1, 1);
}

#[test]
fn the_worker_of_a_broken_link_is_replaced_once_nobody_uses_it() {
    let mut rig = Rig::new(|settings| settings.max = Some(1));
    let (broken, first) = rig.link(1, 1);
    let (other, _) = rig.link(2, 1);
    rig.pool.release(rig.now, 1, broken, true);
    let done = rig.reconcile();
    assert!(!done.iter().any(|a| matches!(a, Action::Stop { .. })));
    let (_, second) = rig.link(1, 1);
    assert_ne!(first, second, "it gets no more links");
    rig.pool.release(rig.now, 2, other, false);
    let stop = Action::Stop {
        worker: first,
        step: Step::Drain,
    };
    assert!(rig.reconcile().contains(&stop));
}
