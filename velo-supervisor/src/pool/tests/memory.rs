//! Workers that outgrow their limit.

use super::*;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 100 * MIB;
const SECOND: Duration = Duration::from_secs(1);

/// A rig with one link, on which one stream with a limit is open.
fn limited() -> (Rig, LinkId, WorkerId) {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    rig.fake.residents.insert(link, 1);
    has(&mut rig, worker, LIMIT / 2);
    let asked = Watch {
        stall: None,
        memory: Some(LIMIT),
    };
    assert!(rig.pool.watch(rig.now, 1, link, asked));
    assert_eq!(rig.reconcile(), []);
    (rig, link, worker)
}

fn has(rig: &mut Rig, worker: WorkerId, bytes: u64) {
    rig.fake.memory.insert(100 + worker as i32, bytes);
}

fn kill(worker: WorkerId) -> Action {
    let step = Step::Kill;
    Action::Stop { worker, step }
}

/// What the worker's clients are told when it has been killed.
fn reap(rig: &mut Rig, worker: WorkerId) -> Option<Killed> {
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    let told = rig.reconcile();
    let why = told.iter().find_map(|action| match action {
        Action::Died { why, .. } => Some(*why),
        _ => None,
    });
    why.expect("a death")
}

#[test]
fn a_worker_that_keeps_to_its_limit_is_let_be() {
    let (mut rig, _, worker) = limited();
    has(&mut rig, worker, LIMIT);
    assert_eq!(rig.pass(100 * SECOND), []);
}

#[test]
fn one_that_outgrows_it_takes_no_more_streams_and_goes_with_its_last() {
    let (mut rig, link, worker) = limited();
    has(&mut rig, worker, LIMIT + MIB);
    let client = 1;
    assert_eq!(rig.pass(SECOND), [Action::Leaving { client, link }]);
    assert_eq!(rig.pass(SECOND), [], "said once");
    let (_, other) = rig.link(2, 1);
    assert_ne!(other, worker, "it does not count any more");
    rig.fake.residents.insert(link, 0);
    let step = Step::Drain;
    assert_eq!(
        rig.pass(SECOND),
        [
            Action::Detach { worker, link },
            Action::Retired { client, link },
            Action::Stop { worker, step }
        ]
    );
    rig.pool.exited(rig.now, worker, Exit::Code(0));
    assert_eq!(rig.reconcile(), [Action::Forget { worker }]);
    assert_eq!(rig.pool.next_retired, None, "an idle system sleeps");
}

#[test]
fn one_that_does_not_shrink_is_killed() {
    let (mut rig, _, worker) = limited();
    has(&mut rig, worker, LIMIT + 10 * MIB);
    assert!(!rig.pass(20 * SECOND).contains(&kill(worker)));
    assert!(rig.pass(15 * SECOND).contains(&kill(worker)));
    let (used, limit) = (LIMIT + 10 * MIB, LIMIT);
    match reap(&mut rig, worker) {
        Some(Killed::Memory {
            used: u,
            limit: l,
            ms,
        }) => {
            assert_eq!((u, l), (used, limit));
            assert!((30_000..32_000).contains(&ms), "{ms}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.pool.restarts.streak(), 0, "the worker is not to blame");
}

#[test]
fn one_that_shrinks_in_time_may_finish_its_streams() {
    let (mut rig, _, worker) = limited();
    has(&mut rig, worker, LIMIT + MIB);
    rig.pass(20 * SECOND);
    has(&mut rig, worker, LIMIT - MIB);
    rig.pass(2 * SECOND);
    has(&mut rig, worker, LIMIT + MIB);
    assert_eq!(rig.pass(20 * SECOND), [], "its time begins anew");
}

#[test]
fn one_with_twice_its_limit_is_killed_at_once() {
    let (mut rig, _, worker) = limited();
    has(&mut rig, worker, 2 * LIMIT);
    assert_eq!(rig.pass(SECOND), [kill(worker)]);
    let (used, limit, ms) = (2 * LIMIT, LIMIT, 0);
    let why = Some(Killed::Memory { used, limit, ms });
    assert_eq!(reap(&mut rig, worker), why);
}

#[test]
fn a_worker_without_limits_is_not_looked_at() {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    rig.fake.residents.insert(link, 1);
    has(&mut rig, worker, 1000 * LIMIT);
    assert_eq!(rig.pass(100 * SECOND), []);
    assert_eq!(rig.pool.watch_deadline(), None);
}

#[test]
fn one_that_is_being_left_is_no_part_of_the_quota() {
    let mut rig = Rig::new(|settings| settings.client_workers = Some(1));
    rig.pool.client_came(1, 42);
    let (link, worker) = rig.link(1, 2);
    rig.fake.residents.insert(link, 1);
    let refused = |done: &[Action]| matches!(done, [Action::Refuse { .. }]);
    assert!(refused(&rig.acquire(1, 2)), "one is the quota");
    rig.pool.retire_all();
    rig.reconcile();
    let (_, other) = rig.link(1, 2);
    assert_ne!(other, worker);
    assert!(refused(&rig.acquire(1, 2)), "and one in its place");
}
